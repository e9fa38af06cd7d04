"""What an update found for the layers of one process: looked at first, then added to ``.grad``."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.finite import BAD_GRADIENT, BAD_TARGET, Look
from targetprop.layers import Record


@dataclass(frozen=True, eq=False)
class LocalGradients:
    """Gradients that no parameter has yet.

    Attributes:
        values: this process' part of the gradient of each parameter, to be summed over those that share the samples.
        remembers: takes over what the update remembers of the batch, one function per layer.
    """

    values: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    remembers: list[Callable[[], None]] = field(default_factory=list)

    def note(self, parameters: Sequence[Any], gradients: Sequence[Tensor | None]) -> None:
        """Note gradients, of which some may be missing."""
        self.values.update((p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None)

    def looks(self, record: Record, deltas: list[Tensor]) -> Iterator[Look]:
        """Look at the change and the gradients of every layer."""
        for layer, delta in zip(record.layers, deltas, strict=True):
            yield Look(BAD_TARGET, (delta,), layer.name)
        for layer in reversed(record.layers):
            own = tuple(self.values[p] for p in layer.layer.parameters() if p in self.values)
            yield Look(BAD_GRADIENT, own, f"layer {layer.name}")

    @torch.no_grad()
    def add_to_grad(self) -> None:
        """Add to ``.grad``; where there is none, the gradient becomes it, or a copy if its memory has other users."""
        for remember in self.remembers:
            remember()
        taken = set()
        for p, gradient in self.values.items():
            if p.grad is not None:
                p.grad.add_(gradient)
                continue
            memory = gradient.untyped_storage().data_ptr()
            shared = memory in taken or gradient.stride() != p.stride()
            p.grad = torch.empty_like(p).copy_(gradient) if shared else gradient
            taken.add(memory)
