"""Gradient update: the gradient in ``θ_l`` of ``½‖f_l(h_{l-1}; θ_l) − ĥ_l‖² / β``, mean over the batch."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from targetprop.layers import Record
from targetprop.updates.base import Update
from targetprop.updates.local_gradients import LocalGradients


@dataclass(frozen=True)
class Gradient(Update):
    """One vector-Jacobian product per layer, on the graph that the forward pass left: no second forward pass."""

    name: ClassVar[str] = "gradient"

    def gradients(self, record: Record, deltas: list[Tensor], scale: float, state: nn.ModuleDict) -> LocalGradients:
        """Compute ``−J_θᵀ Δ / (β n)``, of all layers in one call, as their graphs are separate; see `Update`."""
        found = LocalGradients()
        open_ = [(layer, delta) for layer, delta in zip(record.layers, deltas, strict=True) if layer.y.requires_grad]
        parameters = [p for layer, _ in open_ for p in layer.layer.parameters()]
        if parameters:
            outputs, starts = [layer.y for layer, _ in open_], [delta * (-1 / scale) for _, delta in open_]
            found.note(parameters, torch.autograd.grad(outputs, parameters, starts, allow_unused=True))
        return found
