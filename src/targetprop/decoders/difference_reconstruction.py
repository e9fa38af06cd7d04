r"""Difference reconstruction: one family of decoders, from the inverse to the transpose.

    ``ℓ(w, λ) = [ −2 ε·q + w ‖q‖² + λ ‖p‖² ] / s²``,  ``q = g(f(h+ε)) − g(f(h))``,  ``p = g(h_l+η) − g(h_l)``

has its minimum at ``J_g = J_fᵀ (w J_f J_fᵀ + λ I)⁻¹``: ``(1, 0)`` is the pseudo-inverse and gives Gauss-Newton targets,
``(1, λ)`` its damped form, ``(0, 1)`` the transpose, back-propagation's targets (L-DRL, Ernoult 2022,
arXiv:2201.13415).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from targetprop.decoders.bank import Bank, LayerBank
from targetprop.decoders.layer import Inverse
from targetprop.decoders.objective import Learned, Noise, perturbed
from targetprop.forward import Record


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
    return total / (s * s * len(y0))


@dataclass(frozen=True)
class DifferenceReconstruction(Learned):
    """Learn ``J_g = J_fᵀ (w J_f J_fᵀ + λ I)⁻¹`` from noise alone, layer by layer.

    Attributes:
        w: weight of the inverse, ≥ 0; 0 is the transpose.
        damping: ``λ ≥ 0``.
        relative: measure ``λ`` in units of the mean of the diagonal of ``J_f J_fᵀ``, estimated from the same noise.
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
    name: ClassVar[str] = "difference-reconstruction"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: a setting is out of its range.
        """
        super().__post_init__()
        if self.w < 0 or self.damping < 0 or self.w == self.damping == 0:
            raise ValueError(f"decoder w and damping must be ≥ 0, and not both 0; got {self.w} and {self.damping}")

    def layer_loss(self, bank: Bank, index: int, record: Record, noise: Noise) -> Tensor:
        """Compute ``ℓ(w, λ)`` of one layer; see `Learned.layer_loss`."""
        layer = record.layers[index]
        eps = noise.like(layer.x)
        change = perturbed(layer, eps) - layer.h
        damping: Tensor | float = self.damping
        if self.relative and self.damping:
            damping = self.damping * change.square().mean() / self.noise**2
        assert isinstance(bank, LayerBank)
        g = bank.inverse(index, record)
        penalty = bank.jacobian_norm(index, record) if self.damping else None
        if penalty is None:
            return difference_loss(g, change, layer.h, eps, noise.like(layer.h), self.w, damping, self.noise)
        # The expectation of the last term is known exactly for an affine decoder: no noise, no product.
        loss = difference_loss(g, change, layer.h, eps, eps, self.w, 0.0, self.noise)
        return loss + damping * penalty
