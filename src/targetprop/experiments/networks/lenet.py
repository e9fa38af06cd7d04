"""Few convolutions with large kernels, each pooled, then a hidden layer."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from targetprop.experiments.networks.network import ACTIVATIONS, Network, check_activation, check_sizes
from targetprop.experiments.networks.pooled import pooled_convolutions, pooled_units


@dataclass(frozen=True)
class LeNet(Network):
    """Convolutions 5×5, each followed by its activation and max pooling by 2, then a fully connected hidden layer.

    Attributes:
        channels: output channels of each convolution.
        hidden: units of the hidden layer.
        activation: tanh, relu, leaky-relu, elu, gelu, selu, sigmoid, softplus or identity.
    """

    channels: list[int] = field(default_factory=lambda: [32, 64])
    hidden: int = 512
    activation: str = "relu"
    name: ClassVar[str] = "lenet"

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        check_sizes(channels=self.channels, hidden=self.hidden)
        check_activation(self.activation)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Stack the layers; see `Network.build`."""
        units = pooled_units(self, shape, self.channels)
        return nn.Sequential(
            *pooled_convolutions(shape[0], self.channels, 5, self.activation),
            nn.Flatten(),
            nn.Linear(units, self.hidden),
            ACTIVATIONS[self.activation](),
            nn.Linear(self.hidden, classes),
        )
