"""What an update found for the layers of one process: looked at first, then added to ``.grad``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.finite import BAD_GRADIENT, Look
from targetprop.layers import Layer, LayerRecord, Record


@dataclass(frozen=True, eq=False)
class LocalGradients:
    """Gradients that no parameter has yet.

    Attributes:
        values: this process' part of the gradient of each parameter, to be summed over those that share the samples.
    """

    values: dict[nn.Parameter, Tensor] = field(default_factory=dict)

    def note(self, parameters: Sequence[Any], gradients: Sequence[Tensor | None]) -> None:
        """Note gradients, of which some may be missing."""
        self.values.update((p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None)

    def looks(self, layers: Sequence[Layer]) -> Iterator[Look]:
        """Look at the gradients of every layer, from the top down."""
        for layer in reversed(layers):
            own = [self.values[p] for p in layer.parameters() if p in self.values]
            yield Look(BAD_GRADIENT, own, f"layer {layer.name}")

    @torch.no_grad()
    def add_to_grad(self) -> None:
        """Add to ``.grad``; where there is none, the gradient becomes it, or a copy if its memory has other users."""
        taken = set()
        for p, gradient in self.values.items():
            if p.grad is not None:
                p.grad.add_(gradient)
                continue
            memory = gradient.untyped_storage().data_ptr()
            shared = memory in taken or gradient.stride() != p.stride()
            p.grad = torch.empty_like(p).copy_(gradient) if shared else gradient
            taken.add(memory)


def from_top(record: Record, deltas: Sequence[Tensor]) -> Iterator[tuple[LayerRecord, Tensor]]:
    """Give each layer's record and change, from the top down, and hold on to none that has been given."""
    layers, changes = list(record.layers), list(deltas)
    del record, deltas
    while layers:
        yield layers.pop(), changes.pop()
