"""Mirrors of all weights of a network: with them, the backward pass of a layer is its decoder."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from targetprop.decoders.bank import Bank, Mirrors
from targetprop.decoders.layer import Inverse
from targetprop.layers import LayerRecord, MapUse
from targetprop.precision import at_least_float32


class MirrorBank(Bank):
    """A mirror ``V`` for each weight that a backward pass reads; zero until it has learned.

    Args:
        weights: the weights by key.
        layers: the keys of the weights of each layer, by layer name.
    """

    seen: Tensor  # how many batches the mirrors have seen

    def __init__(self, weights: Mapping[str, Tensor], layers: Mapping[str, Sequence[str]] | None = None) -> None:
        """Start at zero."""
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64, device="cpu"))
        self.names, self._layers = list(weights), dict(layers or {})
        for key, weight in weights.items():
            self.mirror(key, weight)

    def mirror(self, key: str, weight: Tensor) -> Tensor:
        """Find the mirror of a weight; a weight that is new, or has another shape now, gets one.

        Args:
            key: its key.
            weight: the weight, for its shape.

        Returns:
            ``V``, shape of the weight.
        """
        name = key.replace(".", "/")
        found = self._parameters.get(name)
        if found is None or found.shape != weight.shape:  # a layer may have been replaced by one of another size
            zero = torch.zeros_like(weight, memory_format=torch.contiguous_format, requires_grad=False)
            self.register_parameter(name, found := nn.Parameter(zero, requires_grad=False))
        return found

    def keys(self) -> list[str]:
        """List the keys of all weights that have a mirror, the same on all processes that share the layers."""
        return [name.replace("/", ".") for name in self._parameters]

    def keys_of(self, name: str) -> Sequence[str]:
        """List the keys of the weights of a layer, by the layer's name."""
        return self._layers.get(name, ())

    def settle(self, uses: Sequence[MapUse]) -> None:
        """Make what backward passes read of mirrors that have just learned: they read them as they are."""

    def mirrors(self) -> Mirrors:
        """Give `mirror`; see `Bank.mirrors`."""
        return self.mirror

    def inverse(self, layer: LayerRecord) -> Inverse:
        """Bind the backward pass of one layer, ``g(y) = x₀ + J_gᵀ (y − y₀)``; see `Bank.inverse`."""

        def difference(_: Tensor, change: Tensor) -> Tensor:
            follow = torch.is_grad_enabled() and change.requires_grad
            found = layer.pull(change.to(layer.y.dtype), below=True, keep_graph=True, create_graph=follow).below
            assert found is not None
            return found

        return Inverse(lambda y: at_least_float32(layer.x) + difference(y, y - layer.h), difference)

    def composite(self, layers: Sequence[LayerRecord]) -> Inverse:
        """Chain the backward passes; see `Bank.composite`."""
        inverses = [self.inverse(layer) for layer in reversed(layers)]

        def difference(y: Tensor, change: Tensor) -> Tensor:
            for g in inverses:
                change = g.difference(y, change)
            return change

        top, bottom = layers[-1].h, at_least_float32(layers[0].x)
        return Inverse(lambda y: bottom + difference(y, y - top), difference)

    def parts(self, name: str) -> list[nn.Module]:
        """List the mirrors of a layer; see `Bank.parts`."""
        keys = [key.replace(".", "/") for key in self.keys_of(name)]
        return [nn.ParameterList([self.get_parameter(key) for key in keys])]

    def count(self, name: str) -> int:
        """Count the numbers of the mirrors that no layer below has; see `Bank.count`."""
        below = {key for lower in list(self._layers)[: list(self._layers).index(name)] for key in self._layers[lower]}
        new = dict.fromkeys(key for key in self._layers[name] if key not in below)
        return sum(self.get_parameter(key.replace(".", "/")).numel() for key in new)

    def kinds(self) -> dict[str, str]:
        """Say whether a layer has mirrors, or nothing but its own derivative; see `Bank.kinds`."""
        return {name: "mirrored" if keys else "own derivative" for name, keys in list(self._layers.items())[1:]}

    def learns(self, name: str) -> bool:
        """Say that no optimiser trains mirrors; see `Bank.learns`."""
        return False
