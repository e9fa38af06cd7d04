"""Decoders of whole layers, and the callable that an inversion sees."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from targetprop.decoders.linear import LinearDecoder
from targetprop.decoders.registry import ModuleDecoder, PlainDecoder, Style, find_builder
from targetprop.decoders.shape import Rearrange
from targetprop.layers import LayerRecord, ReplayState
from targetprop.precision import at_least_float32, no_autocast


@dataclass(frozen=True, eq=False)
class Inverse:
    """A decoder bound to one forward pass: ``g(y)`` and, without cancellation, its differences.

    Attributes:
        decode: ``g``.
        difference: ``(y, change) ↦ g(y + change) − g(y)``.
    """

    decode: Callable[[Tensor], Tensor]
    difference: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, y: Tensor) -> Tensor:
        """Decode."""
        return self.decode(y)


@dataclass(frozen=True, eq=False)
class DiagonalForm:
    """A decoder whose linear part is ``D_1 V D_2``: a learned map between diagonal ones.

    Attributes:
        weight: ``V``, shape ``(inputs, outputs)`` of the layer's map.
        before: the diagonal of ``D_1``, a row per sample and position, shape ``(rows, inputs)``; None for the identity.
        after: the diagonal of ``D_2``, shape ``(rows, outputs)``; None for the identity.
    """

    weight: Tensor
    before: Tensor | None
    after: Tensor | None


class LayerDecoder(nn.Module):
    """The inverse of a layer: the decoders of its modules, last module first.

    Args:
        parts: one decoder per module of the layer, in forward order.
    """

    def __init__(self, parts: list[ModuleDecoder]) -> None:
        """Keep the parts."""
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def bind(self, record: LayerRecord) -> Inverse:
        """Bind to the replay state of one forward pass."""
        states = record.states
        return Inverse(lambda y: self._decode(y, states), lambda y, change: self._difference(y, change, states))

    def _decode(self, y: Tensor, states: tuple[ReplayState, ...]) -> Tensor:
        for part, state in zip(reversed(self._parts()), reversed(states), strict=True):
            y = part(y, state)
        return y

    def _difference(self, y: Tensor, change: Tensor, states: tuple[ReplayState, ...]) -> Tensor:
        parts = self._parts()
        affine = next((i for i, part in enumerate(parts) if not part.affine), len(parts))
        if affine < len(parts):
            y, moved = at_least_float32(y), at_least_float32(y) + at_least_float32(change)
            with no_autocast(y):  # the difference of the two may be smaller than half precision's rounding
                for part, state in zip(reversed(parts[affine:]), reversed(states[affine:]), strict=True):
                    y, moved = part(y, state), part(moved, state)
            change = moved - y
        for part, state in zip(reversed(parts[:affine]), reversed(states[:affine]), strict=True):
            change = part.linear(change, state)
        return change

    def diagonal_form(self, record: LayerRecord) -> DiagonalForm | None:
        """Write the linear part as ``J_g = D_1 V D_2``; None if it is not one learned map among diagonal parts."""
        parts, states = self._parts(), record.states
        maps = [i for i, part in enumerate(parts) if isinstance(part, LinearDecoder)]
        if len(maps) != 1 or not all(part.diagonal or isinstance(part, LinearDecoder) for part in parts):
            return None
        middle = maps[0]
        linear = parts[middle]
        assert isinstance(linear, LinearDecoder)
        above, below = (parts[middle + 1 :], states[middle + 1 :]), (parts[:middle], states[:middle])
        after = _diagonal(*above, torch.ones_like(record.h))
        before = _diagonal(*below, after.new_ones(*after.shape[:-1], linear.map.out_features))
        weight = linear.map.weight
        return DiagonalForm(
            weight,
            None if _all_rearrange(below[0]) else before.reshape(-1, weight.shape[0]),
            None if _all_rearrange(above[0]) else after.reshape(-1, weight.shape[1]),
        )

    def _parts(self) -> list[ModuleDecoder]:
        return list(self.parts)  # pyright: ignore[reportReturnType]


def _all_rearrange(parts: list[ModuleDecoder]) -> bool:
    return all(isinstance(part, Rearrange) for part in parts)


@torch.no_grad()
def _diagonal(parts: list[ModuleDecoder], states: tuple[ReplayState, ...], values: Tensor) -> Tensor:
    for part, state in zip(reversed(parts), reversed(states), strict=True):
        values = part.linear(values, state)
    return values


class WholeLayerDecoder(LayerDecoder):
    """A user's own module as the decoder of a whole layer; nothing is assumed of it.

    Args:
        module: maps ``h_l`` to ``h_{l-1}``.
    """

    def __init__(self, module: nn.Module) -> None:
        """Wrap the module."""
        super().__init__([PlainDecoder(module)])

    def bind(self, record: LayerRecord) -> Inverse:
        """Bind to one forward pass, of which it uses nothing; see `LayerDecoder.bind`."""
        part, none = self._parts()[0], ReplayState()

        def difference(y: Tensor, change: Tensor) -> Tensor:
            with no_autocast(y):
                return part(at_least_float32(y) + at_least_float32(change), none) - part(at_least_float32(y), none)

        return Inverse(lambda y: part(y, none), difference)


def build_layer_decoder(record: LayerRecord, style: Style) -> LayerDecoder | None:
    """Build a layer's decoder from the registry; None if one of its modules has none."""
    parts = build_parts(record.layer.modules, (record.x, *record.inner), style)
    return None if parts is None else LayerDecoder(parts)


def build_parts(modules: Sequence[nn.Module], values: Sequence[Tensor], style: Style) -> list[ModuleDecoder] | None:
    """Build the decoders of modules in order from an example pass; None if one of them has none registered."""
    parts: list[ModuleDecoder] = []
    for module, x, y in zip(modules, values[:-1], values[1:], strict=True):
        builder = find_builder(module)
        decoder = None if builder is None else builder(module, x, y.detach(), style)
        if decoder is None:
            return None
        decoder = decoder.to(device=y.device)
        parts.append(decoder if isinstance(decoder, ModuleDecoder) else PlainDecoder(decoder))
    return parts
