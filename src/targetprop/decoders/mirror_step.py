"""A step of a mirror: the nearest matrix that explains the answers to probes, or a step down a gradient."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from targetprop.batch import Batch
from targetprop.decoders.probes import Probes
from targetprop.layers import MapUse
from targetprop.layers.sites import same_view

_DAMPING = 1e-3  # μ, with probes of unit length


@dataclass(frozen=True, eq=False)
class MirrorStep:
    """A step of a mirror, worked out and not yet taken.

    Attributes:
        mirror: ``V`` as a matrix, shape ``(g, d, k)``, or as it is.
        missed: ``‖Z − E V‖²`` before the step, a scalar.
        asked: ``‖Z‖²``, a scalar.
        factors: two matrices whose product is added to ``V``; or what is added, and how many times.
    """

    mirror: Tensor
    missed: Tensor
    asked: Tensor
    factors: tuple[Tensor, Tensor]

    @property
    def share(self) -> Tensor:
        """The share of the answers that ``V`` missed before the step, a scalar."""
        return self.missed / self.asked.clamp_min(torch.finfo(self.asked.dtype).tiny)

    def take(self) -> None:
        """Change ``V`` in place."""
        if self.factors[1].dim() == 0:
            self.mirror.add_(self.factors[0] * self.factors[1])
        elif len(self.mirror) == 1:
            self.mirror[0].addmm_(self.factors[0][0], self.factors[1][0])
        else:
            self.mirror.baddbmm_(*self.factors)


def project(probes: Sequence[Probes]) -> list[MirrorStep]:
    """Find for each of several mirrors the nearest matrix that explains the answers.

    Args:
        probes: probes, answers and mirror of each map, which are used up; all maps have as many inputs, outputs and
            probes.

    Returns:
        The steps to them.

    >>> w = torch.tensor([[1.0, 2.0, 3.0]]).T
    >>> v, e = torch.zeros(1, 3, 1), torch.eye(3)[None, :2]
    >>> (step,) = project([Probes(e, e @ w, v)])
    >>> step.take()
    >>> step.share, v.flatten().round(decimals=2)
    (tensor(1.), tensor([1., 2., 0.]))
    """
    groups = [len(p.e) for p in probes]
    e, missed, v = (_joined([getattr(p, part) for p in probes]) for part in ("e", "z", "mirror"))
    asked = torch.linalg.vector_norm(missed, dim=(1, 2)).square()
    missed.baddbmm_(e, v.to(e.dtype), alpha=-1)
    left = torch.linalg.vector_norm(missed, dim=(1, 2)).square()
    lengths = torch.linalg.vector_norm(e, dim=2, keepdim=True).clamp_min(torch.finfo(e.dtype).tiny).reciprocal()
    e.mul_(lengths)
    gram = e @ e.mT
    gram.diagonal(dim1=1, dim2=2).add_(_DAMPING)
    # The small matrix is inverted, which costs a quarter of the triangular solutions with many right-hand sides.
    solved = torch.cholesky_inverse(torch.linalg.cholesky_ex(gram).L) @ missed.mul_(lengths)
    parts = zip(probes, left.split(groups), asked.split(groups), e.mT.split(groups), solved.split(groups), strict=True)
    return [MirrorStep(p.mirror, a.sum(), b.sum(), (e, solved)) for p, a, b, e, solved in parts]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def descend(use: MapUse, mirror: Tensor, generator: torch.Generator, batch: Batch) -> MirrorStep:
    """Go down the gradient of ``‖Z − f_V(E)‖²`` to the minimum along it, for any product that is linear in ``W``.

    Args:
        use: the use of the weight; half of its activations are replaced by noise.
        mirror: ``V``, shape of the weight.
        generator: source of randomness.
        batch: which samples of the step the activations belong to; several processes take the mean of their steps.

    Returns:
        The step to the minimum.
    """
    assert use.call is not None
    func, args, kwargs = use.call
    weight = use.weight
    mirror = same_view(mirror, use.base, weight)

    def noisy(t: Any) -> Any:
        if not isinstance(t, Tensor) or not t.is_floating_point() or t is weight or isinstance(t, nn.Parameter):
            return t
        noise = torch.empty_like(t).normal_(generator=generator)
        return torch.cat([t.detach()[: len(t) // 2], noise[len(t) // 2 :]])

    args, kwargs = tree_map(noisy, args), tree_map(noisy, dict(kwargs))

    def answer(v: Tensor) -> Tensor:
        def put(t: Any) -> Any:
            return v if t is weight else t

        return func(*tree_map(put, args), **tree_map(put, kwargs))

    z, offset = answer(weight.detach()), answer(torch.zeros_like(weight))
    with torch.enable_grad():
        v = mirror.detach().clone().requires_grad_()
        missed = z - answer(v)
        (descent,) = torch.autograd.grad(missed.square().sum() / -2, v)
    missed, response = missed.detach().square().sum(), (answer(descent) - offset).square().sum()
    length = descent.square().sum() / response.clamp_min(torch.finfo(response.dtype).tiny)
    step, asked = descent * length, (z - offset).square().sum()
    batch.average_([step, missed, asked])
    return MirrorStep(mirror, missed, asked, (step, torch.ones_like(length)))


def distinct_parts(uses: Iterable[MapUse]) -> list[MapUse]:
    """Keep one use of each part of a weight: a packed one is several maps, and a tied one, seen twice, is one."""
    parts: dict[str, dict[Any, MapUse]] = {}
    for use in uses:
        weight = use.weight
        part = weight.storage_offset() - use.base.storage_offset(), weight.shape, weight.stride()
        parts.setdefault(use.site.key, {}).setdefault(part, use)
    return [use for found in parts.values() for use in _uncovered(list(found.values()))]


def _uncovered(uses: list[MapUse]) -> list[MapUse]:
    """Leave out the parts of one weight that larger ones cover: two steps for one error would undo each other."""
    if len(uses) == 1:
        return uses
    base, kept = uses[0].base, []
    covered = torch.zeros_like(base, dtype=torch.bool)
    for use in sorted(uses, key=lambda use: -use.weight.numel()):
        part = same_view(covered, base, use.weight)
        if not bool(part.all()):
            kept.append(use)
            part.fill_(True)
    return kept
