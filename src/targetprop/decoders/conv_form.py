r"""The gradient of ``ℓ(w, λ)`` in closed form, for decoders that are one convolution among maps that move values.

``J_g = A V B``: ``V`` is a learned convolution; ``A`` and ``B`` put each value, scaled, at a place of its own, as the
slopes of activations, norms with fixed statistics, dropout and max pooling without overlap do. Then ``AᵀA`` and
``B Bᵀ`` are diagonal, and the expectation over the output noise of ``‖p‖²/s²`` is ``Σ V² ∘ N`` with

    ``N = ∂⟨diag(AᵀA), V diag(B Bᵀ)⟩ / ∂V``:   how often, and how strongly, each entry of ``V`` is used.

So a step needs no output noise and, for ``w = 0``, one correlation of the batch instead of two convolutions and four
correlations.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from targetprop.decoders.conv import ConvDecoder, LearnedMap
from targetprop.decoders.layer import LayerDecoder
from targetprop.decoders.pool import MaxPoolDecoder, ShuffleDecoder
from targetprop.decoders.registry import ModuleDecoder
from targetprop.decoders.shape import Rearrange
from targetprop.layers.forward_pass import LayerRecord
from targetprop.layers.replay import ReplayState

Placed = list[tuple[ModuleDecoder, ReplayState]]


@dataclass(frozen=True, eq=False)
class ConvForm:
    """A decoder whose linear part is ``A V B`` at one forward pass.

    Attributes:
        map: the learned convolution ``V``.
        below: the parts of ``A`` with their replay state, in the order of decoding.
        above: the parts of ``B``, likewise.
    """

    map: LearnedMap
    below: Placed
    above: Placed


def conv_form(decoder: LayerDecoder, record: LayerRecord) -> ConvForm | None:
    """Write the linear part of a decoder as ``A V B``."""
    parts: list[ModuleDecoder] = list(decoder.parts)  # pyright: ignore[reportAssignmentType]
    places = [i for i, part in enumerate(parts) if isinstance(part, LearnedMap)]
    if len(places) != 1:
        return None
    placed = list(zip(parts, record.states, strict=True))[::-1]
    place = len(parts) - 1 - places[0]
    middle, above, below = placed[place][0], placed[:place], placed[place + 1 :]
    assert isinstance(middle, LearnedMap)
    folded = isinstance(middle, ConvDecoder) and middle.fold is not None
    if folded or not all(_moves(part) for part, _ in (*below, *above)):
        return None
    return ConvForm(middle, below, above)


def expected_conv_loss(
    form: ConvForm, change: Tensor, eps: Tensor, w: float, damping: Tensor | float, s: float, *, matched: bool = False
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
    weight, n = form.map.weight.detach(), max(len(change), 1)  # a rank may hold no samples
    moved = _push(form.above, change)
    noise, before = _pull(form, eps)
    after = None if _only_shapes(form.above) else _push(form.above, torch.ones_like(change)).square_()
    if matched:
        back = form.map.transpose(noise)
        response = damping * (back if after is None else back * after)
        loss, gradient = dot(back, response - 2 * moved), form.map.weight_gradient(noise, response - moved)
        if w:
            q = form.map.linear(moved, ReplayState())
            pull = w * (q if before is None else q * before)
            loss, gradient = loss + dot(q, pull), gradient.add_(form.map.weight_gradient(pull, moved))
        return loss / (s * s * n), gradient.mul_(2 / (s * s * n))
    penalty = weight * (damping * _uses(form.map, before, after, noise, moved))
    size = dot(weight, penalty) / n
    if w:
        q = form.map.linear(moved, ReplayState())
        pull = w * (q if before is None else q * before) - noise
        fit = dot(q, pull - noise) / (s * s * n)
    else:
        pull, fit = -noise, None
    gradient = penalty.mul_(2 / n).add_(form.map.weight_gradient(pull, moved), alpha=2 / (s * s * n))
    return (dot(weight, gradient) - size if fit is None else fit + size), gradient


def _moves(part: ModuleDecoder) -> bool:
    """Whether a part puts each value, scaled, at a place of its own."""
    if isinstance(part, MaxPoolDecoder):
        return not part.overlaps
    return part.diagonal or isinstance(part, ShuffleDecoder)


def _only_shapes(parts: Placed) -> bool:
    return all(isinstance(part, Rearrange | ShuffleDecoder) for part, _ in parts)


def _push(parts: Placed, values: Tensor) -> Tensor:
    for part, state in parts:
        values = part.linear(values, state)
    return values


def _pull(form: ConvForm, eps: Tensor) -> tuple[Tensor, Tensor | None]:
    """``Aᵀ ε`` and the diagonal of ``AᵀA``, None if that is the identity."""
    if not form.below:
        return eps, None
    with torch.enable_grad():
        ones = eps.new_ones(len(eps), len(form.map.bias), *form.map.size).requires_grad_()
        image = _push(form.below, ones)
        (noise,) = torch.autograd.grad(image, ones, eps, retain_graph=True)
        if _only_shapes(form.below):
            return noise, None
        return noise, torch.autograd.grad(image, ones, image.detach())[0]


def _uses(map_: LearnedMap, before: Tensor | None, after: Tensor | None, x: Tensor, y: Tensor) -> Tensor:
    """``N``, summed over the batch: with one factor the same for all samples, the other can be summed first."""
    if before is not None and after is not None:
        return map_.weight_gradient(before, after)
    a = torch.ones_like(x[:1]) if before is None else before.sum(0, keepdim=True)
    b = torch.ones_like(y[:1]) if after is None else after.sum(0, keepdim=True)
    uses = map_.weight_gradient(a, b)
    return uses * len(x) if before is None and after is None else uses


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum the products of entries, in the type of the first."""
    return torch.dot(a.reshape(-1), b.reshape(-1).to(a.dtype))
