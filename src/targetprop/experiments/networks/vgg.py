"""Convolutions 3×3, each pooled, and nothing else hidden."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from targetprop.experiments.networks.network import Network, check_activation, check_sizes
from targetprop.experiments.networks.pooled import pooled_convolutions, pooled_units


@dataclass(frozen=True)
class Vgg(Network):
    """Convolutions 3×3, each followed by its activation and max pooling by 2, after Ernoult 2022.

    Attributes:
        channels: output channels of each convolution; every one halves height and width.
        activation: tanh, relu, leaky-relu, elu, gelu, selu, sigmoid, softplus or identity.
    """

    channels: list[int] = field(default_factory=lambda: [128, 128, 256, 256, 512])
    activation: str = "relu"
    name: ClassVar[str] = "vgg"

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        check_sizes(channels=self.channels)
        check_activation(self.activation)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Stack the layers; see `Network.build`."""
        units = pooled_units(self, shape, self.channels)
        convolutions = pooled_convolutions(shape[0], self.channels, 3, self.activation)
        return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(units, classes))
