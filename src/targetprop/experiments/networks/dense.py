"""Fully connected networks."""

from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

from torch import nn

from targetprop.experiments.networks.network import ACTIVATIONS, Network, check_activation


@dataclass(frozen=True)
class Dense(Network):
    """Fully connected layers.

    Attributes:
        widths: units of each hidden layer; input and output are the data's.
        activation: tanh, relu, leaky-relu, elu, gelu, selu, sigmoid, softplus or identity.
    """

    widths: list[int] = field(default_factory=lambda: [128, 128])
    activation: str = "tanh"
    name: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if any(width < 1 for width in self.widths):
            raise ValueError(f"network.widths must be whole numbers ≥ 1; got {self.widths}")
        check_activation(self.activation)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Stack linear maps and activations; see `Network.build`."""
        layers: list[nn.Module] = [nn.Flatten()]
        width = prod(shape)
        for hidden in self.widths:
            layers += [nn.Linear(width, hidden), ACTIVATIONS[self.activation]()]
            width = hidden
        return nn.Sequential(*layers, nn.Linear(width, classes))
