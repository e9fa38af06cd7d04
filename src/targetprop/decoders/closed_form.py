r"""The gradient of ``ℓ(w, λ)`` in closed form, for decoders that are one learned map among maps that move values.

``J_g = A V B``: ``V`` is learned; ``A`` and ``B`` put each value, scaled, at a place of its own, as the slopes of
activations, norms with fixed statistics, dropout and max pooling without overlap do. Then ``AᵀA`` and ``B Bᵀ`` are
diagonal, and the expectation over the output noise of ``‖p‖²/s²`` is ``Σ V² ∘ N`` with

    ``N = ∂⟨diag(AᵀA), V diag(B Bᵀ)⟩ / ∂V``:   how often, and how strongly, each entry of ``V`` is used.

So a step needs no output noise and, for ``w = 0``, one product of the batch instead of several.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from targetprop.decoders.layer import Part
from targetprop.decoders.maps import BoundMap


@dataclass(frozen=True, eq=False)
class Form:
    """A decoder whose linear part is ``A V B`` at one forward pass.

    Attributes:
        map: the learned map ``V``.
        below: the parts of ``A``, in the order of decoding.
        above: the parts of ``B``, likewise.
    """

    map: BoundMap
    below: Sequence[Part]
    above: Sequence[Part]


def find_form(parts: Sequence[Part]) -> Form | None:
    """Write the linear part of a decoder as ``A V B``; None if it is another.

    Args:
        parts: the decoder's parts, in the order of decoding.

    Returns:
        The form.
    """
    places = [place for place, part in enumerate(parts) if isinstance(part, BoundMap)]
    if len(places) != 1 or not all(part.moves for part in parts if not isinstance(part, BoundMap)):
        return None
    place = places[0]
    middle = parts[place]
    assert isinstance(middle, BoundMap)
    return Form(middle, parts[place + 1 :], parts[:place])


def expected_difference_loss(
    form: Form, change: Tensor, eps: Tensor, w: float, damping: Tensor | float, s: float, *, matched: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute ``ℓ(w, λ)`` and its gradient in ``V``, without output noise.

    Args:
        form: the decoder.
        change: ``f(h+ε) − f(h)``, shape of the layer's output.
        eps: input noise, shape of the layer's input.
        w: weight of ``‖q‖²``.
        damping: ``λ``.
        s: scale of the noise.
        matched: estimate ``‖J_g‖²`` by ``‖J_gᵀ ε‖²/s²`` instead of its expectation.

    Returns:
        The loss, mean over samples, and its gradient, shape of ``V``.
    """
    weight, n, map_ = form.map.weight.detach(), max(len(change), 1), form.map  # a rank may hold no samples
    moved = _push(form.above, change)
    noise, before = _pull(form, eps, moved)
    after = _push(form.above, torch.ones_like(change)).square() if form.above else None
    if matched:
        back = map_.push(noise, weight)
        response = damping * (back if after is None else back * after)
        loss, gradient = dot(back, response - 2 * moved), map_.outer(noise, response - moved)
        if w:
            q = map_.back(moved, weight)
            pull = w * (q if before is None else q * before)
            loss, gradient = loss + dot(q, pull), gradient + map_.outer(pull, moved)
        return loss / (s * s * n), gradient * (2 / (s * s * n))
    penalty = weight * (damping * _uses(map_, before, after, noise, moved))
    size = dot(weight, penalty) / n
    if w:
        q = map_.back(moved, weight)
        pull = w * (q if before is None else q * before) - noise
        fit = dot(q, pull - noise) / (s * s * n)
    else:
        pull, fit = -noise, None
    gradient = penalty.mul_(2 / n).add_(map_.outer(pull, moved), alpha=2 / (s * s * n))
    return (dot(weight, gradient) - size if fit is None else fit + size), gradient


def _push(parts: Sequence[Part], values: Tensor) -> Tensor:
    for part in parts:
        values = part.linear(values)
    return values


def _pull(form: Form, eps: Tensor, moved: Tensor) -> tuple[Tensor, Tensor | None]:
    """``Aᵀ ε`` and the diagonal of ``AᵀA``; None where ``A`` is the identity."""
    if not form.below:
        return eps, None
    with torch.enable_grad():
        shape = form.map.back(moved[:1], form.map.weight.detach()).shape[1:]
        ones = eps.new_ones(len(moved), *shape).requires_grad_()
        image = _push(form.below, ones)
        (noise,) = torch.autograd.grad(image, ones, eps, retain_graph=True)
        return noise, torch.autograd.grad(image, ones, image.detach())[0]


def _uses(map_: BoundMap, before: Tensor | None, after: Tensor | None, x: Tensor, y: Tensor) -> Tensor:
    """``N``, summed over the batch: with one factor the same for all samples, the other can be summed first."""
    if before is not None and after is not None:
        return map_.outer(before, after)
    a = x.new_ones(1, *x.shape[1:]) if before is None else before.sum(0, keepdim=True)
    b = y.new_ones(1, *y.shape[1:]) if after is None else after.sum(0, keepdim=True)
    uses = map_.outer(a, b)
    return uses * len(x) if before is None and after is None else uses


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum the products of entries, in the type of the first."""
    return torch.dot(a.reshape(-1), b.reshape(-1).to(a.dtype))
