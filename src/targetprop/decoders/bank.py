"""All decoders of a network by the name of the layer that each inverts; the first layer has none."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from math import gcd

from torch import Tensor, nn

from targetprop.decoders.affine import AffineDecoder
from targetprop.decoders.closed_form import Form, find_form
from targetprop.decoders.layer import Inverse, LayerDecoder, WholeLayerDecoder
from targetprop.decoders.linearised import LinearisedDecoder
from targetprop.layers import LayerRecord, Network, Record

Mirrors = Callable[[str, Tensor], Tensor] | None
Bindable = LayerDecoder | LinearisedDecoder


class Bank(nn.Module):
    """The decoders of a network; `composite` serves every bank, `inverse` those that go layer by layer.

    Attributes:
        names: what each decoder is called; the noise that trains it has a source of its own by that name.
    """

    names: Sequence[str] = ()

    @abstractmethod
    def inverse(self, layer: LayerRecord) -> Inverse:
        """Bind the decoder of one layer.

        Args:
            layer: the record of the layer to be inverted, not the first of the network.

        Returns:
            ``g`` of that layer, from ``h_l`` to ``h_{l-1}``.
        """

    @abstractmethod
    def composite(self, layers: Sequence[LayerRecord]) -> Inverse:
        """Bind the inverse of everything from one layer to the output.

        Args:
            layers: the records of these layers, in forward order.

        Returns:
            ``G``, from the output space to the input space of the lowest of them.
        """

    def mirrors(self) -> Mirrors:
        """Give what finds the mirror of a weight by its key; None where backward passes read weights."""
        return None

    def kinds(self) -> dict[str, str]:
        """Say in a word how each layer is inverted, keyed by layer name."""
        return {}

    def parts(self, name: str) -> list[nn.Module]:
        """List what belongs to the decoder of one layer alone, by the layer's name."""
        return []

    def count(self, name: str) -> int:
        """Count the numbers that the decoder of a layer, given by name, learns."""
        return sum(p.numel() for part in self.parts(name) for p in part.parameters() if p.requires_grad)

    def learns(self, name: str) -> bool:
        """Say whether the decoder of a layer, given by name, has a trainable parameter."""
        return True


class LayerBank(Bank):
    """One decoder per layer.

    Args:
        decoders: decoder of each layer by name; the first layer has none.
        names: layer names in forward order.
    """

    def __init__(self, decoders: Mapping[str, Bindable], names: list[str]) -> None:
        """Keep the decoders."""
        super().__init__()
        self.layers = nn.ModuleDict({_key(name): decoder for name, decoder in decoders.items()})
        self.moments = nn.ModuleDict()
        self.names = names[1:]

    def decoder(self, name: str) -> Bindable:
        """Find the decoder of one layer by the layer's name."""
        decoder = _find(self.layers, name)
        assert isinstance(decoder, Bindable)
        return decoder

    def inverse(self, layer: LayerRecord) -> Inverse:
        """Bind the decoder of one layer; see `Bank.inverse`."""
        return self.decoder(layer.name).bind(layer)

    def composite(self, layers: Sequence[LayerRecord]) -> Inverse:
        """Chain the decoders in their differential form, ``x ← h + g(x) − g(h)``; see `Bank.composite`."""
        steps = [(self.inverse(layer), layer) for layer in reversed(layers)]

        def decode(y: Tensor) -> Tensor:
            for g, layer in steps:
                y = layer.x + g.difference(layer.h, y - layer.h)
            return y

        def difference(y: Tensor, change: Tensor) -> Tensor:
            for g, layer in steps:
                y, change = layer.x + g.difference(layer.h, y - layer.h), g.difference(y, change)
            return change

        return Inverse(decode, difference)

    def parts(self, name: str) -> list[nn.Module]:
        """List the decoder and its moments; see `Bank.parts`."""
        return [modules[_key(name)] for modules in (self.layers, self.moments) if _key(name) in modules]

    def moments_of(self, name: str) -> nn.Module | None:
        """Find the running moments of a layer's decoder, if it has any."""
        return self.moments[_key(name)] if _key(name) in self.moments else None

    def keep_moments(self, name: str, moments: nn.Module) -> None:
        """Keep running moments for the decoder of a layer."""
        self.moments[_key(name)] = moments

    def form(self, layer: LayerRecord) -> Form | None:
        """Write the linear part of a layer's decoder as ``A V B``; None if it has another form."""
        decoder = self.decoder(layer.name)
        return find_form(decoder.parts(layer)) if isinstance(decoder, LayerDecoder) else None

    def learns(self, name: str) -> bool:
        """Look for trainable parameters; see `Bank.learns`."""
        return any(p.requires_grad for p in self.decoder(name).parameters())

    def kinds(self) -> dict[str, str]:
        """Say in a word how each layer is inverted; see `Bank.kinds`."""
        found = {}
        for name in self.names if len(self.layers) else []:
            decoder = self.decoder(name)
            if isinstance(decoder, LinearisedDecoder):
                found[name] = f"linearised, w={decoder.w:g}, damping={decoder.damping:g}"
                continue
            if not any(True for _ in decoder.parameters()):
                found[name] = "without weights"
                continue
            learns = "learned" if self.learns(name) else "fixed"
            affine = [part for part in decoder.modules() if isinstance(part, AffineDecoder)]
            beside = " on the identity" if affine and all(part.residual for part in affine) else ""
            found[name] = f"affine{beside}, {learns}" if affine else learns
        return found


class DirectBank(Bank):
    """One affine map from the output to each layer (direct feedback).

    Args:
        example: a forward pass that gives the shapes.
    """

    def __init__(self, example: Record) -> None:
        """Draw the maps as ``nn.Linear`` does."""
        super().__init__()
        self.maps = nn.ModuleDict()
        for layer in example.inverted:
            n = gcd(len(layer.x), len(example.output))
            outputs, inputs = example.output.numel() // n, layer.x.numel() // n
            self.maps[_key(layer.name)] = nn.Linear(outputs, inputs).to(example.output)
        self.names = [layer.name for layer in example.inverted]

    def inverse(self, layer: LayerRecord) -> Inverse:
        """Refuse: there is no map between neighbouring layers; see `Bank.inverse`."""
        raise ValueError("direct feedback has no layer-wise inverse; use propagation='composite'")

    def composite(self, layers: Sequence[LayerRecord]) -> Inverse:
        """Bind the map to the lowest layer; see `Bank.composite`."""
        linear, x, h = _find(self.maps, layers[0].name), layers[0].x, layers[-1].h
        assert isinstance(linear, nn.Linear)
        n = gcd(len(x), len(h))
        if (h.numel(), x.numel()) != (n * linear.in_features, n * linear.out_features):
            raise ValueError(
                f"direct feedback to layer {layers[0].name} was made for {linear.in_features} values of the output and"
                f" {linear.out_features} of the layer, which are {h.numel() // n} and {x.numel() // n} now; let the"
                " model return what the loss takes, for inputs of the size of example_input"
            )

        def apply(y: Tensor, bias: Tensor | None) -> Tensor:
            return nn.functional.linear(y.reshape(-1, linear.in_features), linear.weight, bias).view(-1, *x.shape[1:])

        return Inverse(lambda y: apply(y, linear.bias), lambda y, change: apply(change, None))

    def parts(self, name: str) -> list[nn.Module]:
        """List the map to a layer; see `Bank.parts`."""
        return [self.maps[_key(name)]] if _key(name) in self.maps else []  # the first layer has none

    def kinds(self) -> dict[str, str]:
        """Say in a word how each layer is inverted; see `Bank.kinds`."""
        return dict.fromkeys(self.names, "direct feedback, learned")


def build_layer_bank(
    network: Network,
    example: Record,
    make: Callable[[LayerRecord], Bindable],
    custom: Mapping[str, nn.Module],
) -> LayerBank:
    """Build one decoder per layer, with the user's own where given."""
    network.check_names(list(custom), "decoders")
    if any(name in custom for name in network.names[:1]):
        raise ValueError(f"decoders names layer {network.names[0]!r}, the first one, which is never inverted")
    decoders: dict[str, Bindable] = {}
    for record in example.inverted:
        name = record.name
        if name not in custom:
            decoders[name] = make(record)
            continue
        decoders[name] = WholeLayerDecoder(custom[name])
        got = decoders[name].bind(record)(record.h).shape
        if got != record.x.shape:
            raise ValueError(
                f"the decoder of layer {name} returns {tuple(got)}, and the input of the layer has shape"
                f" {tuple(record.x.shape)}; they must agree"
            )
    return LayerBank(decoders, network.names)


def _find(made: nn.ModuleDict, name: str) -> nn.Module:
    """Find what was made for a layer."""
    if _key(name) not in made:
        raise ValueError(
            f"layer {name} was not there when decoders were made: the model was changed since, the loss takes less than"
            " all that it returns, or it takes another path in training; build the engine after changing the model, let"
            " it return what the loss takes, or choose a method of mirrors, such as 'l-drl'"
        )
    return made[_key(name)]


def _key(name: str) -> str:
    return name.replace(".", "/") or "model"
