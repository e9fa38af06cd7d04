r"""Influence normalisation (Bengio 2020, arXiv:2007.15139): ``Δ_l ← Δ_l ‖Δ_L‖² / ‖Δ_l‖²``, per sample.

With exact inverses ``Δ_l = J⁻¹ Δ_L``, so a layer with much influence on the output gets a small change, the opposite of
gradient descent. Scaled by the squared influence ``‖Δ_L‖²/‖Δ_l‖²``, the change of a scalar chain *is* the gradient's.

>>> import torch
>>> J = 4.0                                       # influence of h_l on the output
>>> delta_out = torch.tensor([[0.5]])
>>> normalise(delta_out / J, delta_out), delta_out * J
(tensor([[2.]]), tensor([[2.]]))
"""

from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from targetprop.inversion import per_sample, sample_norm
from targetprop.settings import check_types


def normalise(delta: Tensor, delta_out: Tensor, limit: float = float("inf")) -> Tensor:
    """Scale a layer's change by its squared influence on the output.

    Args:
        delta: ``Δ_l``, shape ``(n, …)``.
        delta_out: ``Δ_L``, shape ``(n, …)``.
        limit: most that the factor ``‖Δ_L‖/‖Δ_l‖`` may be, so ``‖Δ_l‖ ≤ limit · ‖Δ_L‖`` afterwards.

    Returns:
        The scaled change, shape of ``delta``; a zero change stays zero.
    """
    flat, delta_out = delta.flatten(1), delta_out.flatten(1) if delta_out.dim() > 1 else delta_out.unsqueeze(1)
    if len(delta) != len(delta_out):  # a layer may fold positions into samples
        n = gcd(len(delta), len(delta_out))
        flat, delta_out = delta.reshape(n, -1), delta_out.reshape(n, -1)
    size, size_out = sample_norm(flat), sample_norm(delta_out)
    influence = torch.where(size > 0, size_out / size, torch.zeros_like(size))
    return (flat * per_sample(influence * influence.clamp(max=limit), flat)).reshape(delta.shape)


@dataclass(frozen=True)
class Influence:
    """Settings of the normalisation.

    Attributes:
        normalise: whether it is applied to all layers below the output.
        limit: largest influence that is believed, ``‖Δ_l‖ ≤ limit · ‖Δ_L‖`` after normalisation.
    """

    normalise: bool = False
    limit: float = float("inf")

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: a setting is out of its range.
        """
        check_types(self, "influence ")
        if not self.limit > 0:
            raise ValueError(f"influence limit must be > 0; got {self.limit}")

    def __call__(self, deltas: list[Tensor], delta_out: Tensor) -> list[Tensor]:
        """Apply the normalisation.

        Args:
            deltas: ``Δ_l`` of consecutive layers.
            delta_out: ``Δ_L``; where it is one of them, it is left as it is.

        Returns:
            The changes that the updates will use.
        """
        if not self.normalise:
            return deltas
        return [delta if delta is delta_out else normalise(delta, delta_out, self.limit) for delta in deltas]
