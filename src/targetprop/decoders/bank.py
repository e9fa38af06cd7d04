"""All decoders of a chain: which inverse serves which stretch of the network.

Layers are counted from 0 here; decoder ``l`` always inverts layer ``l``, and layer 0 has none.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from targetprop.chain import Chain
from targetprop.decoders.conv_form import ConvForm, conv_form
from targetprop.decoders.layer import DiagonalForm, Inverse, LayerDecoder, WholeLayerDecoder, build_layer_decoder
from targetprop.decoders.linear import LinearDecoder
from targetprop.decoders.linearised import LinearisedDecoder
from targetprop.decoders.registry import Style
from targetprop.decoders.residual import IdentityDecoder
from targetprop.decoders.shape import Rearrange
from targetprop.forward import Record

FALLBACK_DAMPING = 0.1
Bindable = LayerDecoder | LinearisedDecoder


class Bank(nn.Module):
    """The decoders of a chain; `composite` serves every bank, `inverse` those that go layer by layer."""

    @abstractmethod
    def inverse(self, index: int, record: Record) -> Inverse:
        """Bind the decoder of one layer, from ``h_{index+1}`` to ``h_index`` in the count of the record.

        Args:
            index: the layer to be inverted, ≥ 1.
            record: the forward pass.

        Returns:
            ``g`` of that layer.
        """

    @abstractmethod
    def composite(self, index: int, record: Record) -> Inverse:
        """Bind the inverse of everything from layer ``index`` to the output.

        Args:
            index: the lowest layer to be inverted, ≥ 1.
            record: the forward pass.

        Returns:
            ``G``, from the output space to the input space of that layer.
        """

    def kinds(self) -> dict[str, str]:
        """Say in a word how each layer is inverted, keyed by layer name."""
        return {}

    def parts(self, index: int) -> list[nn.Module]:
        """List what belongs to the decoder of one layer alone.

        Args:
            index: any layer.

        Returns:
            The modules.
        """
        return []

    def learns(self, index: int) -> bool:
        """Say whether there is anything to train in the inverse of one layer.

        Args:
            index: the layer to be inverted, ≥ 1.

        Returns:
            False where the decoder has no trainable parameter.
        """
        return True


class LayerBank(Bank):
    """One decoder per layer.

    Args:
        decoders: decoder of each layer by name; the first layer has none.
        names: layer names in forward order.
    """

    warm: Tensor  # whether the decoders have seen a batch

    def __init__(self, decoders: Mapping[str, Bindable], names: list[str]) -> None:
        """Keep the decoders."""
        super().__init__()
        self.register_buffer("warm", torch.zeros((), dtype=torch.bool, device="cpu"))
        self.layers = nn.ModuleDict({_key(name): decoder for name, decoder in decoders.items()})
        self.moments = nn.ModuleDict()
        self.names = names
        self.mirrored: set[int] = set()  # layers whose decoders learn, but by no optimiser

    def decoder(self, index: int) -> Bindable:
        """Find the decoder of one layer.

        Args:
            index: the layer, ≥ 1.

        Returns:
            The decoder.
        """
        decoder = self.layers[_key(self.names[index])]
        assert isinstance(decoder, Bindable)
        return decoder

    def inverse(self, index: int, record: Record) -> Inverse:
        """Bind the decoder of one layer; see `Bank.inverse`."""
        return self.decoder(index).bind(record.layers[index])

    def composite(self, index: int, record: Record) -> Inverse:
        """Chain the decoders in their differential form, ``x ← h + g(x) − g(h)``; see `Bank.composite`."""
        steps = [(self.inverse(i, record), record.layers[i]) for i in reversed(range(index, len(self.names)))]

        def decode(y: Tensor) -> Tensor:
            for g, layer in steps:
                y = layer.x + g.difference(layer.h, y - layer.h)
            return y

        def difference(y: Tensor, change: Tensor) -> Tensor:
            for g, layer in steps:
                y, change = layer.x + g.difference(layer.h, y - layer.h), g.difference(y, change)
            return change

        return Inverse(decode, difference)

    def parts(self, index: int) -> list[nn.Module]:
        """List the decoder and its moments; see `Bank.parts`."""
        found = ((self.layers, _key(self.names[index])), (self.moments, str(index)))
        return [modules[key] for modules, key in found if key in modules]

    def single_linear(self, index: int) -> LinearDecoder | None:
        """Find the affine map that is, up to rearrangement, the whole decoder of a layer.

        Args:
            index: the layer, ≥ 1.

        Returns:
            The map, or None if the decoder is anything else.
        """
        parts = list(self.decoder(index).children())
        parts = list(parts[0].children()) if parts and isinstance(parts[0], nn.ModuleList) else []
        rest = [part for part in parts if not isinstance(part, Rearrange)]
        return rest[0] if len(rest) == 1 and isinstance(rest[0], LinearDecoder) else None

    def diagonal_form(self, index: int, record: Record) -> DiagonalForm | None:
        """Write the linear part of a layer's decoder as ``D_1 V D_2``.

        Args:
            index: the layer, ≥ 1.
            record: the forward pass.

        Returns:
            The factors, or None if the decoder has another form.
        """
        decoder = self.decoder(index)
        return decoder.diagonal_form(record.layers[index]) if isinstance(decoder, LayerDecoder) else None

    def conv_form(self, index: int, record: Record) -> ConvForm | None:
        """Write the linear part of a layer's decoder as ``A V B`` with a convolution ``V``.

        Args:
            index: the layer, ≥ 1.
            record: the forward pass.

        Returns:
            The factors, or None if the decoder has another form.
        """
        decoder = self.decoder(index)
        return conv_form(decoder, record.layers[index]) if isinstance(decoder, LayerDecoder) else None

    def learns(self, index: int) -> bool:
        """Look for trainable parameters; see `Bank.learns`."""
        return index not in self.mirrored and any(p.requires_grad for p in self.decoder(index).parameters())

    def count(self, index: int) -> int:
        """Count what the decoder of one layer learns.

        Args:
            index: the layer to be inverted, ≥ 1.

        Returns:
            The number of its trainable numbers.
        """
        return sum(p.numel() for p in self.decoder(index).parameters() if p.requires_grad or index in self.mirrored)

    def kinds(self) -> dict[str, str]:
        """Say in a word how each layer is inverted; see `Bank.kinds`."""
        found = {}
        for index, name in list(enumerate(self.names))[1:] if len(self.layers) else []:
            decoder = self.decoder(index)
            if isinstance(decoder, LinearisedDecoder):
                found[name] = f"linearised, w={decoder.w:g}, damping={decoder.damping:g}"
            elif index in self.mirrored:
                found[name] = "mirrored"
            elif self.learns(index):
                found[name] = "learned"
            else:
                identity = any(isinstance(part, IdentityDecoder) for part in decoder.modules())
                found[name] = "identity" if identity else "fixed"
        return found


class DirectBank(Bank):
    """One affine map from the output to each layer (direct feedback).

    Args:
        example: a forward pass that gives the shapes.
    """

    def __init__(self, example: Record) -> None:
        """Draw the maps as ``nn.Linear`` does."""
        super().__init__()
        output = example.output
        self.maps = nn.ModuleList(
            nn.Linear(output[0].numel(), layer.x[0].numel()).to(output) for layer in example.layers[1:]
        )
        self.names = [layer.layer.name for layer in example.layers]

    def inverse(self, index: int, record: Record) -> Inverse:
        """Refuse: there is no map between neighbouring layers; see `Bank.inverse`."""
        raise ValueError("direct feedback has no layer-wise inverse; use propagation='composite'")

    def composite(self, index: int, record: Record) -> Inverse:
        """Bind the map to one layer; see `Bank.composite`."""
        linear = self.maps[index - 1]
        assert isinstance(linear, nn.Linear)
        shape = record.layers[index].x.shape[1:]
        return Inverse(
            lambda y: linear(y.flatten(1)).view(-1, *shape),
            lambda y, change: nn.functional.linear(change.flatten(1), linear.weight).view(-1, *shape),
        )

    def kinds(self) -> dict[str, str]:
        """Say in a word how each layer is inverted; see `Bank.kinds`."""
        return dict.fromkeys(self.names[1:], "direct feedback, learned")


def build_layer_bank(
    chain: Chain,
    example: Record,
    inner: list[tuple[Tensor, ...]],
    make: Style | Callable[[], LinearisedDecoder],
    custom: Mapping[str, nn.Module],
) -> LayerBank:
    """Build one decoder per layer from the registry, with the user's own where given.

    Args:
        chain: the layers.
        example: a forward pass on a few samples.
        inner: outputs of the modules inside each layer in that pass.
        make: the style of learned decoders, or a function that makes linearised ones.
        custom: the user's own decoders by layer name, each mapping the layer's output to its input.

    Returns:
        The bank; layers with an unregistered module get a linearised decoder.

    Raises:
        ValueError: a custom decoder names no layer, or the first one, or returns the wrong shape.
    """
    chain.check_names(list(custom), "decoders")
    if chain.names[0] in custom:
        raise ValueError(f"decoders names layer {chain.names[0]!r}, the first one, which is never inverted")
    decoders: dict[str, Bindable] = {}
    for record, outputs in zip(example.layers[1:], inner[1:], strict=True):
        name = record.layer.name
        if name in custom:
            decoders[name] = WholeLayerDecoder(custom[name])
            got = decoders[name].bind(record)(record.h).shape
            if got != record.x.shape:
                raise ValueError(
                    f"the decoder of layer {name} returns {tuple(got)}, and the input of the layer has shape"
                    f" {tuple(record.x.shape)}; they must agree"
                )
        elif callable(make):
            decoders[name] = make()
        else:
            built = build_layer_decoder(record, outputs, make)
            decoders[name] = LinearisedDecoder(1.0, FALLBACK_DAMPING) if built is None else built
    return LayerBank(decoders, chain.names)


def _key(name: str) -> str:
    return name.replace(".", "/") or "model"
