r"""Difference reconstruction: one family of decoders, from the inverse to the transpose.

    ``ℓ(w, λ) = [ −2 ε·q + w ‖q‖² + λ ‖p‖² ] / s²``,  ``q = g(f(h+ε)) − g(f(h))``,  ``p = g(h_l+η) − g(h_l)``

has its minimum at ``J_g = J_fᵀ (w J_f J_fᵀ + λ I)⁻¹``: ``(1, 0)`` is the pseudo-inverse and gives Gauss-Newton targets,
``(1, λ)`` its damped form, ``(0, 1)`` the transpose, back-propagation's targets (L-DRL, Ernoult 2022,
arXiv:2201.13415).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from targetprop.decoders.bank import Bank, LayerBank
from targetprop.decoders.closed_form import expected_difference_loss
from targetprop.decoders.layer import Inverse
from targetprop.decoders.maps import MapDecoder
from targetprop.decoders.objective import Learned, Noise, Signal, perturbed
from targetprop.layers import LayerRecord, Network, Record


def difference_loss(
    g: Inverse, change: Tensor, y0: Tensor, eps: Tensor, eta: Tensor, w: float, damping: Tensor | float, s: float
) -> Tensor:
    """Compute ``ℓ(w, λ)``, mean over samples.

    Args:
        g: the decoder, of a layer or of a composite.
        change: ``f(h+ε) − f(h)``, shape ``(n, …)`` of ``y0``.
        y0: ``f(h)``, shape ``(n, …)``.
        eps: input noise, shape ``(n, …)`` of ``h``.
        eta: output noise, shape of ``y0``.
        w: weight of ``‖q‖²``.
        damping: ``λ``.
        s: scale of both noises.

    Returns:
        A scalar.
    """
    q = g.difference(y0, change)
    inner = q * (w * q - 2 * eps) if w else -2 * eps * q
    total = inner.sum()
    if isinstance(damping, Tensor) or damping > 0:
        total = total + damping * g.difference(y0, eta).square().sum()
    return total / (s * s * max(len(y0), 1))


@dataclass(frozen=True)
class DifferenceReconstruction(Learned):
    """Learn ``J_g = J_fᵀ (w J_f J_fᵀ + λ I)⁻¹`` from noise alone, layer by layer.

    Attributes:
        w: weight of the inverse, ≥ 0; 0 is the transpose.
        damping: ``λ ≥ 0``.
        relative: measure ``λ`` in units of the mean of the diagonal of ``J_f J_fᵀ``, estimated from the same noise.
        penalty: how ``‖J_g‖²`` is estimated: "expected" over the output noise, or "matched", ``‖J_gᵀ ε‖²/s²``. With
            ``w = 0`` the latter makes the whole a regression, ``‖J_f ε − λ J_gᵀ ε‖²``, whose noise vanishes at its
            minimum; decoders that are not one learned map among diagonal ones take the former.
        start: initial weights of decoders of maps, "random" or "zero"; transposes are far smaller than random ones.
        activation: see `Learned`.
        noise: see `Learned`.
        updates: see `Learned`.
        share: see `Learned`.
        lr: see `Learned`.
        optimizer: see `Learned`.
    """

    w: float = 1.0
    damping: float = 0.0
    relative: bool = False
    penalty: Literal["expected", "matched"] = "expected"
    start: Literal["random", "zero"] = "random"
    name: ClassVar[str] = "difference-reconstruction"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.w < 0 or self.damping < 0 or self.w == self.damping == 0:
            raise ValueError(f"decoder w and damping must be ≥ 0, and not both 0; got {self.w} and {self.damping}")

    def build(self, network: Network, example: Record, custom: Mapping[str, nn.Module]) -> Bank:
        """Build learned decoders, and set their weights to zero if asked to; see `Objective.build`."""
        bank = super().build(network, example, custom)
        if self.start == "zero":
            maps = [module for module in bank.modules() if isinstance(module, MapDecoder)]
            for parameter in (p for module in maps for p in module.parameters()):
                nn.init.zeros_(parameter)
        return bank

    def layer_loss(self, bank: Bank, layers: Sequence[LayerRecord], record: Record, noise: Noise) -> Tensor:
        """Compute ``ℓ(w, λ)`` of one layer; see `Learned.layer_loss`."""
        layer = layers[0]
        eps, change, damping = self._perturb(layer, record, noise)
        eta, g = noise.like(layer.h), bank.inverse(layer)
        return difference_loss(g, change, layer.h, eps, eta, self.w, damping, self.noise)

    def signal(self, bank: Bank, layers: Sequence[LayerRecord], record: Record, noise: Noise) -> Signal:
        """Use the closed form where the decoder allows it; see `Learned.signal`."""
        assert isinstance(bank, LayerBank)
        form = bank.form(layers[0])
        if form is not None and form.map.weight.requires_grad:
            eps, change, damping = self._perturb(layers[0], record, noise)
            matched = self.penalty == "matched"
            with torch.no_grad():
                found = expected_difference_loss(form, change, eps, self.w, damping, self.noise, matched=matched)
            return Signal(found[0], form.map.weight, found[1])
        return super().signal(bank, layers, record, noise)

    def _perturb(self, layer: LayerRecord, record: Record, noise: Noise) -> tuple[Tensor, Tensor, Tensor | float]:
        eps = noise.like(layer.x)
        change = perturbed(layer, eps) - layer.h
        if not (self.relative and self.damping):
            return eps, change, self.damping
        return eps, change, self.damping * record.batch.mean(change.square()) / self.noise**2
