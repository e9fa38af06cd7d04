"""The networks, by name: settings that build an ``nn.Sequential`` for a data set's shape and classes."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

from torch import nn

from targetprop.experiments.errors import suggest

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}


@dataclass(frozen=True)
class Network(ABC):
    """Settings of a network."""

    name: ClassVar[str]

    @abstractmethod
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Build the network with PyTorch's own initial values.

        Args:
            shape: shape of one input.
            classes: number of outputs.

        Returns:
            The network.
        """


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
        """Check the settings.

        Raises:
            ValueError: a width is not positive, or the activation is unknown.
        """
        if any(width < 1 for width in self.widths):
            raise ValueError(f"network.widths must be whole numbers ≥ 1; got {self.widths}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"unknown network.activation {self.activation!r}; {suggest(self.activation, ACTIVATIONS)}")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Stack linear maps and activations; see `Network.build`."""
        layers: list[nn.Module] = [nn.Flatten()]
        width = prod(shape)
        for hidden in self.widths:
            layers += [nn.Linear(width, hidden), ACTIVATIONS[self.activation]()]
            width = hidden
        return nn.Sequential(*layers, nn.Linear(width, classes))


NETWORKS: dict[str, type[Network]] = {Dense.name: Dense}
