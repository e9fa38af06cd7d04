r"""Global difference reconstruction and direct feedback (Meulemans 2020, arXiv:2006.14331).

Layer ``l`` is perturbed, the perturbation runs on to the output and comes back, either through all decoders (DRL) or
by a direct map from the output (DDTP-linear). With ``F = f_L∘…∘f_{l+1}`` and ``G`` the way back, the loss is ``ℓ(1,
λ)`` of `difference_reconstruction` on ``(F, G)``; it trains the decoder next to layer ``l`` only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from targetprop.decoders.bank import Bank, DirectBank
from targetprop.decoders.difference_reconstruction import difference_loss
from targetprop.decoders.layer import Inverse
from targetprop.decoders.objective import Learned, Noise
from targetprop.layers import LayerRecord, Network, Record
from targetprop.settings import check_ranges


@dataclass(frozen=True)
class GlobalReconstruction(Learned):
    """Learn decoders whose whole chain reconstructs a perturbation from its effect on the output.

    Attributes:
        damping: ``λ``, weight of the output noise.
        activation: see `Learned`.
        noise: see `Learned`.
        updates: see `Learned`.
        share: see `Learned`.
        lr: see `Learned`.
        optimizer: see `Learned`.
    """

    damping: float = 0.1
    name: ClassVar[str] = "global-reconstruction"
    local: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        check_ranges(self, "decoder ", damping=(self.damping >= 0, "≥ 0"))

    def layer_loss(self, bank: Bank, layers: Sequence[LayerRecord], record: Record, noise: Noise) -> Tensor:
        """Send a perturbation up to the output and back; see `Learned.layer_loss`."""
        return _global_loss(_way_back(bank, layers), layers, record, noise, self.damping, self.noise)


def _way_back(bank: Bank, layers: Sequence[LayerRecord]) -> Inverse:
    last = bank.inverse(layers[0])
    if len(layers) == 1:
        return last
    upper, h, output = bank.composite(layers[1:]), layers[0].h, layers[-1].h

    def arrive(y: Tensor, change: Tensor) -> Tensor:
        with torch.no_grad():
            return upper.difference(y, change)

    # Linearised around the forward pass: only ``y = h_L`` is ever asked for.
    return Inverse(
        lambda y: last(h + arrive(output, y - output)),
        lambda y, change: last.difference(h, arrive(y, change)),
    )


@dataclass(frozen=True)
class DirectFeedback(Learned):
    """Learn one affine map from the output to each layer.

    Attributes:
        damping: ``λ``, weight of the output noise.
        activation: the maps are affine: "identity" only.
        noise: see `Learned`.
        updates: see `Learned`.
        share: see `Learned`.
        lr: see `Learned`.
        optimizer: see `Learned`.
    """

    damping: float = 0.1
    name: ClassVar[str] = "direct-feedback"
    local: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        check_ranges(self, "decoder ", damping=(self.damping >= 0, "≥ 0"))

    def build(self, network: Network, example: Record, custom: Mapping[str, nn.Module]) -> Bank:
        """Build the direct maps; see `Objective.build`."""
        if custom or self.activation != "identity":
            raise ValueError("direct feedback uses affine maps from the output; it takes no decoders or activation")
        return DirectBank(example)

    def layer_loss(self, bank: Bank, layers: Sequence[LayerRecord], record: Record, noise: Noise) -> Tensor:
        """Send a perturbation up to the output and back at once; see `Learned.layer_loss`."""
        return _global_loss(bank.composite(layers), layers, record, noise, self.damping, self.noise)


def _global_loss(
    g: Inverse, layers: Sequence[LayerRecord], record: Record, noise: Noise, damping: float, s: float
) -> Tensor:
    eps = noise.like(layers[0].x)
    with torch.no_grad():
        y = layers[0].x + eps
        for layer in layers:
            y = layer.f(y)
    return difference_loss(g, y - record.output, record.output, eps, noise.like(record.output), 1.0, damping, s)
