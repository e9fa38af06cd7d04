"""Decoders of whole layers, and the callable that an inversion sees."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from targetprop.decoders.registry import ModuleDecoder, PlainDecoder, Style, find_builder
from targetprop.forward import LayerRecord, Side


@dataclass(frozen=True, eq=False)
class Inverse:
    """A decoder bound to one forward pass: ``g(y)`` and, without cancellation, ``g(a) − g(b)``.

    Attributes:
        decode: ``g``.
        difference: ``(a, b) ↦ g(a) − g(b)``.
    """

    decode: Callable[[Tensor], Tensor]
    difference: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, y: Tensor) -> Tensor:
        """Decode.

        Args:
            y: shape ``(n, …)``.

        Returns:
            ``g(y)``.
        """
        return self.decode(y)


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
        """Bind to the side data of one forward pass.

        Args:
            record: the layer's record.

        Returns:
            The inverse as a callable.
        """
        sides = record.sides
        return Inverse(lambda y: self._decode(y, sides), lambda a, b: self._difference(a, b, sides))

    def _decode(self, y: Tensor, sides: tuple[Side, ...]) -> Tensor:
        for part, side in zip(reversed(self._parts()), reversed(sides), strict=True):
            y = part(y, side)
        return y

    def _difference(self, a: Tensor, b: Tensor, sides: tuple[Side, ...]) -> Tensor:
        parts = self._parts()
        affine = next((i for i, part in enumerate(parts) if not part.affine), len(parts))
        for part, side in zip(reversed(parts[affine:]), reversed(sides[affine:]), strict=True):
            a, b = part(a, side), part(b, side)
        change = a - b
        for part, side in zip(reversed(parts[:affine]), reversed(sides[:affine]), strict=True):
            change = part.linear(change, side)
        return change

    def _parts(self) -> list[ModuleDecoder]:
        return list(self.parts)  # pyright: ignore[reportReturnType]


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
        part, none = self._parts()[0], Side()
        return Inverse(lambda y: part(y, none), lambda a, b: part(a, none) - part(b, none))


def build_layer_decoder(record: LayerRecord, inner: tuple[Tensor, ...], style: Style) -> LayerDecoder | None:
    """Build a layer's decoder from the registry.

    Args:
        record: an example of the layer's forward pass.
        inner: the outputs of the layer's modules in that pass.
        style: how activations and norms are decoded.

    Returns:
        The decoder, or None if a module of the layer has none registered.
    """
    builders = [find_builder(module) for module in record.layer.modules]
    parts: list[ModuleDecoder] = []
    inputs = (record.x, *inner[:-1])
    for builder, module, x, y in zip(builders, record.layer.modules, inputs, inner, strict=True):
        if builder is None:
            return None
        decoder = builder(module, x, y.detach(), style)
        decoder = decoder.to(device=y.device)
        parts.append(decoder if isinstance(decoder, ModuleDecoder) else PlainDecoder(decoder))
    return LayerDecoder(parts)
