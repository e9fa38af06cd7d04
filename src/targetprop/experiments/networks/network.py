"""What every family of networks has: settings with a name, checked, that build a module."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NoReturn

from torch import nn

from targetprop.experiments.errors import CommandError, suggest
from targetprop.settings import check_types

MOST_LAYERS = 10_000
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
    layers: ClassVar[list[str] | None] = None  # where layers end, if the method's rule does not say

    def __post_init__(self) -> None:
        """Check what the settings are; a wrong one raises `ValueError`."""
        check_types(self, "network.")

    @abstractmethod
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Build the network with PyTorch's own initial values."""


def check_sizes(**sizes: int | list[int]) -> None:
    """Refuse settings that are not positive."""
    for name, value in sizes.items():
        if isinstance(value, list) and not (value and min(value) >= 1):
            raise ValueError(f"network.{name} must be one or more whole numbers ≥ 1; got {value}")
        if isinstance(value, int) and value < 1:
            raise ValueError(f"network.{name} must be a whole number ≥ 1; got {value}")


def check_layers(count: int) -> None:
    """Refuse more layers than could ever be built: no allocation fails before all are there."""
    if count > MOST_LAYERS:
        raise ValueError(f"the network would have {count} blocks or layers; ask for {MOST_LAYERS} or fewer")


def check_activation(name: str) -> None:
    """Refuse an unknown activation."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown network.activation {name!r}; {suggest(name, ACTIVATIONS)}")


def refuse_images(network: Network, shape: tuple[int, ...], need: str, remedy: str) -> NoReturn:
    """End the command, for images that do not fit a network."""
    size = "×".join(map(str, shape[1:]))
    raise CommandError(f"network {network.name!r} needs images {need} and the data's have {size} pixels; {remedy}")
