"""Small residual networks of pre-activation blocks (He 2016, arXiv:1603.05027)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import gcd
from typing import ClassVar, Literal

from torch import nn

from targetprop import Residual
from targetprop.experiments.networks.network import (
    ACTIVATIONS,
    Network,
    check_activation,
    check_layers,
    check_sizes,
    refuse_images,
)

Norm = Literal["group", "batch", "none"]
_NORMS: dict[Norm, Callable[[int], nn.Module]] = {
    "group": lambda channels: nn.GroupNorm(gcd(8, channels), channels),
    "batch": nn.BatchNorm2d,
    "none": lambda channels: nn.Identity(),
}


@dataclass(frozen=True)
class ResNet(Network):
    """A convolution 3×3, stages of residual blocks, then the mean over pixels.

    Attributes:
        width: channels of the first stage; every other has twice those of the one before.
        blocks: residual blocks of each stage; all stages but the first begin by halving height and width.
        norm: group (in up to 8 groups), batch or none.
        activation: tanh, relu, leaky-relu, elu, gelu, selu, sigmoid, softplus or identity.
    """

    width: int = 32
    blocks: list[int] = field(default_factory=lambda: [1, 1, 1])
    norm: Norm = "group"
    activation: str = "relu"
    name: ClassVar[str] = "resnet"

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        check_sizes(width=self.width, blocks=self.blocks)
        check_layers(sum(self.blocks))
        check_activation(self.activation)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Stack the blocks; see `Network.build`."""
        least = 2 ** (len(self.blocks) - 1)
        if min(shape[1:]) < least:
            need = f"of {least}×{least} pixels or more for its {len(self.blocks)} stages"
            refuse_images(self, shape, need, "give fewer --network.blocks, or larger images")
        layers: list[nn.Module] = [nn.Conv2d(shape[0], self.width, 3, padding=1, bias=False)]
        channels = self.width
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                after = self.width * 2**stage
                layers.append(self._block(channels, after, stride=2 if stage and not index else 1))
                channels = after
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
        return nn.Sequential(*layers, *self._enter(channels), *head)

    def _enter(self, channels: int) -> list[nn.Module]:
        return [_NORMS[self.norm](channels), ACTIVATIONS[self.activation]()]

    def _block(self, before: int, after: int, stride: int) -> Residual:
        """Make a block whose shortcut is the identity, or a strided convolution 1×1 where the shape changes."""
        same = before == after and stride == 1
        return Residual(
            *self._enter(before),
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            *self._enter(after),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            shortcut=None if same else nn.Conv2d(before, after, 1, stride, bias=False),
        )
