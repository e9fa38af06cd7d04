"""Delta rule: the smallest change of the weights that moves one sample by ``Δ`` (Bengio 2020, arXiv:2007.15139)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from targetprop.updates.asked import Regression
from targetprop.updates.linear import LinearUpdate


@dataclass(frozen=True)
class DeltaRule(LinearUpdate):
    """``ΔW = Δz aᵀ / ‖a‖²``, mean over the batch, with ``a`` including the constant 1 of the bias.

    ``.grad`` is ``−ΔW / β``, so SGD with learning rate ``β`` takes the whole step. With ``Δ_l = J_{l→L}⁻¹ Δ_L`` and one
    sample it is the block-diagonal Gauss-Newton step.

    Attributes:
        pullback: see `LinearUpdate`.
        pullback_damping: see `LinearUpdate`.
    """

    name: ClassVar[str] = "delta-rule"

    def solve(self, asked: Regression, state: nn.ModuleDict) -> Tensor:
        """Average the outer products; see `LinearUpdate.solve`."""
        size = asked.a.square().sum(1, keepdim=True)
        return (asked.dz / asked.scale).T @ (asked.a / size.clamp_min(1e-12))
