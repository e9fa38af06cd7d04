"""Networks of convolutions, each followed by its activation and max pooling by 2: `LeNet` and `Vgg`."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from targetprop.experiments.networks.network import ACTIVATIONS, Network, check_activation, check_sizes, refuse_images


@dataclass(frozen=True)
class Pooled(Network):
    """What both have.

    Attributes:
        channels: output channels of each convolution; every one halves height and width.
        activation: tanh, relu, leaky-relu, elu, gelu, selu, sigmoid, softplus or identity.
    """

    channels: list[int]
    activation: str = "relu"

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        check_sizes(channels=self.channels)
        check_activation(self.activation)

    def stack(self, shape: tuple[int, ...], kernel: int) -> tuple[list[nn.Module], int]:
        """Stack the convolutions, and count the units behind them."""
        least = 2 ** len(self.channels)
        if min(shape[1:]) < least:
            remedy = "give fewer --network.channels, or larger images"
            need = f"of {least}×{least} pixels or more for its {len(self.channels)} poolings"
            refuse_images(self, shape, need, remedy)
        layers: list[nn.Module] = []
        for before, after in zip([shape[0], *self.channels], self.channels, strict=False):
            convolution = nn.Conv2d(before, after, kernel, padding=kernel // 2)
            layers += [convolution, ACTIVATIONS[self.activation](), nn.MaxPool2d(2)]
        return [*layers, nn.Flatten()], self.channels[-1] * (shape[1] // least) * (shape[2] // least)


@dataclass(frozen=True)
class LeNet(Pooled):
    """Few convolutions 5×5, then a fully connected hidden layer.

    Attributes:
        hidden: units of the hidden layer.
    """

    channels: list[int] = field(default_factory=lambda: [32, 64])
    hidden: int = 512
    name: ClassVar[str] = "lenet"

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        check_sizes(hidden=self.hidden)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Stack the layers; see `Network.build`."""
        layers, units = self.stack(shape, 5)
        head = [nn.Linear(units, self.hidden), ACTIVATIONS[self.activation](), nn.Linear(self.hidden, classes)]
        return nn.Sequential(*layers, *head)


@dataclass(frozen=True)
class Vgg(Pooled):
    """Convolutions 3×3 and nothing else hidden, after Ernoult 2022."""

    channels: list[int] = field(default_factory=lambda: [128, 128, 256, 256, 512])
    name: ClassVar[str] = "vgg"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Stack the layers; see `Network.build`."""
        layers, units = self.stack(shape, 3)
        return nn.Sequential(*layers, nn.Linear(units, classes))
