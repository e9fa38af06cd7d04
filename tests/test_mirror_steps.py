"""One step of a mirror: the projection onto a block of answers, and the descent for products of other forms."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cases import DTYPE, rand, relative
from targetprop.batch import Batch
from targetprop.decoders.mirror_step import descend, project
from targetprop.decoders.probes import Probes
from targetprop.layers import MapUse
from targetprop.layers.sites import Site


def test_a_block_of_probes_is_explained_and_nothing_else_moves() -> None:
    """The step is the nearest matrix with ``E V = Z``, of each group for itself, up to the damping."""
    w, v, e = rand(2, 9, 5, seed=1), rand(2, 9, 5, seed=2), rand(2, 4, 9, seed=3)
    rest = torch.linalg.qr(e.mT, mode="complete").Q[:, :, 4:]  # the directions that were not probed
    before = v.clone()
    (step,) = project([Probes(e.clone(), e @ w, v)])
    assert torch.equal(v, before), "not taken yet"
    step.take()
    torch.testing.assert_close(step.missed, (e @ (w - before)).square().sum())
    torch.testing.assert_close(step.share, step.missed / (e @ w).square().sum())
    assert relative(e @ v, e @ w) < 3e-3
    torch.testing.assert_close(rest.mT @ v, rest.mT @ before)
    before = v.clone()
    (step,) = project([Probes(0 * e, 0 * e @ w, v)])
    step.take()
    assert float(step.share) == 0 and torch.equal(v, before), "probes of zero teach nothing"


PRODUCTS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...], tuple[int, ...]]] = {
    "einsum": (lambda a, w: torch.einsum("nhi,hio->nho", a, w), ((6, 2, 3),), (2, 3, 4)),
    "bilinear": (lambda a, b, w: functional.bilinear(a, b, w), ((8, 3), (8, 2)), (4, 3, 2)),
    "from the left": (lambda a, w: w @ a, ((6, 3, 2),), (4, 3)),
}


def product(name: str) -> tuple[MapUse, list[tuple[Tensor, ...]]]:
    """Make the use of a weight by a product that is no plain map, and a list of the activations it is called with."""
    func, shapes, weight = PRODUCTS[name]
    w, seen = rand(*weight, seed=1), []

    def call(*args: Tensor) -> Tensor:
        seen.append(args[:-1])
        return func(*args)

    given = tuple(rand(*shape, seed=2 + i) for i, shape in enumerate(shapes))
    return MapUse(Site("w", "other", (len(shapes),), None, True), w, w, None, None, None, (call, (*given, w), {})), seen


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_other_forms_step_to_the_minimum_along_the_gradient(name: str) -> None:
    use, seen = product(name)
    v, func = rand(*use.weight.shape, seed=9), PRODUCTS[name][0]
    before = v.clone()
    step = descend(use, v, torch.Generator().manual_seed(0), Batch(1))
    activities = seen[0]

    def missed(weight: Tensor) -> Tensor:
        return (func(*activities, use.weight) - func(*activities, weight)).square().sum()

    assert use.call is not None
    for found, given in zip(activities, use.call[1], strict=False):
        half = len(given) // 2
        assert torch.equal(found[:half], given[:half]) and not torch.isclose(found[half:], given[half:]).any()
    step.take()
    torch.testing.assert_close(step.missed, missed(before))
    torch.testing.assert_close(step.share, missed(before) / missed(torch.zeros_like(before)))
    units = torch.eye(v.numel(), dtype=DTYPE).view(-1, *v.shape)
    ascent = torch.stack([missed(before + u) - missed(before - u) for u in units]).view_as(v)
    moved = v - before
    torch.testing.assert_close(moved / moved.norm(), -ascent / ascent.norm())
    best = missed(v)
    assert best < missed(before) and all(missed(before + factor * moved) > best for factor in (0.99, 1.01))


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_other_forms_end_at_the_weight(name: str) -> None:
    use, _ = product(name)
    v, generator = torch.zeros_like(use.weight), torch.Generator().manual_seed(0)
    for _ in range(150):
        descend(use, v, generator, Batch(1)).take()
    assert relative(v, use.weight) < 1e-3
