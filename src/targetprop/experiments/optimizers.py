"""The optimisers of the network, by name: settings that make a ``torch.optim`` optimiser."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import nn

from targetprop.settings import check_ranges, check_types


@dataclass(frozen=True)
class Optimizer:
    """Settings of an optimiser, under the names that ``torch.optim`` has for them.

    Attributes:
        lr: learning rate.
    """

    lr: float
    name: ClassVar[str]
    kind: ClassVar[type[torch.optim.Optimizer]]

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        check_types(self, "optimizer.")
        check_ranges(self, "optimizer.", lr=(self.lr > 0, "a number > 0"))

    def make(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser."""
        return self.kind(parameters, **asdict(self))


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam."""

    lr: float = 1e-3
    name: ClassVar[str] = "adam"
    kind: ClassVar[type[torch.optim.Optimizer]] = torch.optim.Adam


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    Attributes:
        weight_decay: fraction of the weights that a step at learning rate 1 would take away.
    """

    lr: float = 1e-3
    weight_decay: float = 0.01
    name: ClassVar[str] = "adamw"
    kind: ClassVar[type[torch.optim.Optimizer]] = torch.optim.AdamW

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        check_ranges(self, "optimizer.", weight_decay=(self.weight_decay >= 0, "a number ≥ 0"))


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
    kind: ClassVar[type[torch.optim.Optimizer]] = torch.optim.SGD

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


@dataclass(frozen=True)
class RmsProp(Optimizer):
    """RMSprop."""

    lr: float = 1e-3
    name: ClassVar[str] = "rmsprop"
    kind: ClassVar[type[torch.optim.Optimizer]] = torch.optim.RMSprop


OPTIMIZERS: dict[str, type[Optimizer]] = {o.name: o for o in (Adam, AdamW, Sgd, RmsProp)}
