"""Gradient update: the gradient in ``θ_l`` of ``½‖f_l(h_{l-1}; θ_l) − ĥ_l‖² / β``, mean over the batch."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from targetprop.batch import Batch
from targetprop.updates.base import Changes, Update
from targetprop.updates.local_gradients import LocalGradients


@dataclass(frozen=True)
class Gradient(Update):
    """One vector-Jacobian product per layer, on the graph that the forward pass left: no second forward pass."""

    name: ClassVar[str] = "gradient"

    def gradients(self, layers: Changes, batch: Batch, scale: float, state: nn.ModuleDict) -> LocalGradients:
        """Compute ``−J_θᵀ Δ / (β n)``; see `Update.gradients`."""
        found = LocalGradients()
        for layer, delta, came in layers:
            parameters = layer.parameters
            pulled = layer.pull(delta * (-1 / scale), gradients=parameters) if came is None else came
            found.note(layer.name, parameters, pulled.gradients)
        return found
