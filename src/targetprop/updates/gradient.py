"""Gradient update: the gradient in ``θ_l`` of ``½‖f_l(h_{l-1}; θ_l) − ĥ_l‖² / β``, mean over the batch."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from targetprop.forward import LayerRecord
from targetprop.updates.base import Update


@dataclass(frozen=True)
class Gradient(Update):
    """One vector-Jacobian product per layer, on the graph that the forward pass left: no second forward pass."""

    name: ClassVar[str] = "gradient"

    def apply(self, layer: LayerRecord, delta: Tensor, scale: float, state: nn.ModuleDict) -> None:
        """Accumulate ``−J_θᵀ Δ / (β n)``; see `Update.apply`."""
        if layer.y.requires_grad:
            layer.y.backward(delta * (-1 / scale))
