"""Gradient update: the gradient in ``θ_l`` of ``½‖f_l(h_{l-1}; θ_l) − ĥ_l‖² / β``, mean over the batch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from targetprop.layers import LayerRecord, Wanted
from targetprop.updates.asked import Common
from targetprop.updates.base import Update
from targetprop.updates.local_gradients import LayerChange, LocalGradients


@dataclass(frozen=True)
class Gradient(Update):
    """One vector-Jacobian product per layer, on the graph that the forward pass left: no second forward pass."""

    name: ClassVar[str] = "gradient"

    @property
    def straight(self) -> bool:
        """See `Update.straight`."""
        return True

    def wants(self, layer: LayerRecord, state: nn.ModuleDict) -> Wanted:
        """Want the gradients of all parameters; see `Update.wants`."""
        return Wanted(layer.parameters)

    def seed(self, delta: Tensor, scale: float) -> Tensor:
        """Give ``−Δ / (β n)``; see `Update.seed`."""
        return delta * (-1 / scale)

    def gradients(self, layers: Iterable[LayerChange], common: Common, state: nn.ModuleDict) -> LocalGradients:
        """Compute ``−J_θᵀ Δ / (β n)``; see `Update.gradients`."""
        found = LocalGradients()
        for change in layers:
            layer, parameters = change.layer, change.layer.parameters
            pulled = change.pulled or layer.pull(self.seed(change.delta, common.scale), gradients=parameters)
            found.note(layer.name, parameters, pulled.gradients)
        return found
