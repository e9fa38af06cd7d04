"""Gradient update: the gradient in ``θ_l`` of ``½‖f_l(h_{l-1}; θ_l) − ĥ_l‖² / β``, mean over the batch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from targetprop.updates.asked import Common
from targetprop.updates.base import Update
from targetprop.updates.local_gradients import LayerChange, LocalGradients


@dataclass(frozen=True)
class Gradient(Update):
    """One vector-Jacobian product per layer, on the graph that the forward pass left: no second forward pass."""

    name: ClassVar[str] = "gradient"

    def gradients(self, layers: Iterable[LayerChange], common: Common, state: nn.ModuleDict) -> LocalGradients:
        """Compute ``−J_θᵀ Δ / (β n)``; see `Update.gradients`."""
        found = LocalGradients()
        for change in layers:
            layer, came, parameters = change.layer, change.pulled, change.layer.parameters
            pulled = layer.pull(change.delta * (-1 / common.scale), gradients=parameters) if came is None else came
            found.note(layer.name, parameters, pulled.gradients)
        return found
