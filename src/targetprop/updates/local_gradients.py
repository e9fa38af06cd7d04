"""What an update found for the layers of one process: looked at first, then added to ``.grad``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from targetprop.finite import BAD_GRADIENT, Look
from targetprop.joint import Targets
from targetprop.layers import LayerRecord, Pulled, Record
from targetprop.layers.graph import leaves_of


@dataclass(frozen=True, eq=False)
class LocalGradients:
    """Gradients that no parameter has yet.

    Attributes:
        values: this process' part of the gradient of each parameter, to be summed over those that share the samples.
        names: the layer that each belongs to, the lowest of several.
    """

    values: dict[Tensor, Tensor] = field(default_factory=dict)
    names: dict[Tensor, str] = field(default_factory=dict)

    def note(self, name: str, parameters: Sequence[Any], gradients: Sequence[Tensor | None]) -> None:
        """Add gradients of a layer, of which some may be missing."""
        for p, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                self.values[p] = self.values[p] + gradient if p in self.values else gradient
                self.names[p] = name

    def settle(self, derived: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Carry the gradients of values made from parameters alone on to the parameters.

        Args:
            derived: these values as leaves and with their graphs, in the order of their making.
        """
        for leaf, made in reversed(derived):
            gradient, name = self.values.pop(leaf, None), self.names.pop(leaf, "")
            if gradient is not None:
                sources = leaves_of([made])
                found = torch.autograd.grad(made, sources, gradient, retain_graph=True, allow_unused=True)
                self.note(name, sources, found)

    def looks(self) -> Iterator[Look]:
        """Look at the gradients of every layer, from the top down."""
        for name in dict.fromkeys(self.names.values()):
            own = [self.values[p] for p, owner in self.names.items() if owner == name]
            yield Look(BAD_GRADIENT, own, f"layer {name}")

    def add_to_grad(self) -> None:
        """Add to ``.grad``, and run the hooks that users have registered to be run after that."""
        self._accumulate()
        for p in self.values:
            for hook in list((p._post_accumulate_grad_hooks or {}).values()):
                hook(p)

    @torch.no_grad()
    def _accumulate(self) -> None:
        """Where there is no ``.grad``, the gradient becomes it, or a copy if its memory has other users."""
        taken = set()
        for p, gradient in self.values.items():
            if p.grad is not None:
                p.grad.add_(gradient)
                continue
            if gradient.layout != torch.strided:
                p.grad = gradient
                continue
            memory = gradient.untyped_storage().data_ptr()
            shared = memory in taken or gradient.stride() != p.stride()
            p.grad = torch.empty_like(p).copy_(gradient) if shared else gradient
            taken.add(memory)


@dataclass(frozen=True, eq=False)
class LayerChange:
    """What an update is told of one layer.

    Attributes:
        layer: its record, with its graph.
        delta: ``Δ_l``, shape of ``h_l``.
        pulled: what came out of its backward pass, if that was made already.
        drawn: the same of labels drawn from what the network believes, with their change ``s_l``; None where none were.
    """

    layer: LayerRecord
    delta: Tensor
    pulled: Pulled | None = None
    drawn: "LayerChange | None" = None


def from_top(
    record: Record, deltas: Sequence[Tensor], pulled: Mapping[str, Pulled], drawn: Targets | None = None
) -> Iterator[LayerChange]:
    """Give what an update is told of each layer, from the top down, and hold on to none of it.

    Args:
        record: the forward pass.
        deltas: ``Δ_l`` of every layer, as they are to be used.
        pulled: what came out of backward passes that were made already, by layer name.
        drawn: the targets of drawn labels, if there are any.

    Yields:
        What is known of a layer.
    """
    layers, changes, came = list(record.layers), list(deltas), dict(pulled)
    others = None if drawn is None else from_top(record, drawn.deltas, drawn.pulled)
    del record, deltas, pulled, drawn
    while layers:
        layer = layers.pop()
        yield LayerChange(layer, changes.pop(), came.pop(layer.name, None), None if others is None else next(others))
