"""The optimisers of the network, by name: settings that make a ``torch.optim`` optimiser."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from targetprop.settings import check_ranges, check_types


@dataclass(frozen=True)
class Optimizer(ABC):
    """Settings of an optimiser.

    Attributes:
        lr: learning rate.
    """

    lr: float
    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        check_types(self, "optimizer.")
        check_ranges(self, "optimizer.", lr=(self.lr > 0, "a number > 0"))

    @abstractmethod
    def make(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser."""


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam."""

    lr: float = 1e-3
    name: ClassVar[str] = "adam"

    def make(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make Adam; see `Optimizer.make`."""
        return torch.optim.Adam(parameters, lr=self.lr)


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    Attributes:
        weight_decay: fraction of the weights that a step at learning rate 1 would take away.
    """

    lr: float = 1e-3
    weight_decay: float = 0.01
    name: ClassVar[str] = "adamw"

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        check_ranges(self, "optimizer.", weight_decay=(self.weight_decay >= 0, "a number ≥ 0"))

    def make(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make AdamW; see `Optimizer.make`."""
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Sgd(Optimizer):
    """Gradient descent with momentum.

    Attributes:
        momentum: fraction of the last step that is taken again.
        nesterov: whether the gradient is seen as if that fraction were taken already; needs momentum > 0.
        weight_decay: what is added to the gradient, in units of the weights.
    """

    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    name: ClassVar[str] = "sgd"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_ranges(
            self, "optimizer.",
            momentum=(0 <= self.momentum < 1, "a number in [0, 1)"),
            weight_decay=(self.weight_decay >= 0, "a number ≥ 0"),
        )  # fmt: skip
        if self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov needs momentum; set optimizer.momentum > 0")

    def make(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make SGD; see `Optimizer.make`."""
        return torch.optim.SGD(
            parameters, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
        )


@dataclass(frozen=True)
class RmsProp(Optimizer):
    """RMSprop."""

    lr: float = 1e-3
    name: ClassVar[str] = "rmsprop"

    def make(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make RMSprop; see `Optimizer.make`."""
        return torch.optim.RMSprop(parameters, lr=self.lr)


OPTIMIZERS: dict[str, type[Optimizer]] = {o.name: o for o in (Adam, AdamW, Sgd, RmsProp)}
