r"""Learning-rate schedules, by name: what the optimiser's learning rate is multiplied by at each step.

Of ``T`` steps, the first ``W`` (the warm-up) raise the factor in equal parts to 1; with ``p = (k − W)/(T − W)`` it is
then

    constant ``1``,    linear ``1 − p``,    cosine ``½ (1 + cos π p)``    at step ``k = 0 … T − 1``.

>>> [Linear(warmup=0.25).factor(k, 8) for k in (0, 1, 2, 5, 8)]
[0.5, 1.0, 1.0, 0.5, 0.0]
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from targetprop.settings import check_ranges, check_types


@dataclass(frozen=True)
class Schedule(ABC):
    """Settings of a schedule.

    Attributes:
        warmup: fraction of all steps in which the learning rate rises from near 0 to its full value, in [0, 1).
    """

    warmup: float = 0.0
    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        check_types(self, "schedule.")
        check_ranges(self, "schedule.", warmup=(0 <= self.warmup < 1, "a fraction of all steps in [0, 1)"))

    def make(self, optimizer: Optimizer, steps: int) -> LambdaLR:
        """Attach it to an optimiser."""
        return LambdaLR(optimizer, lambda step: self.factor(step, steps))

    def factor(self, step: int, steps: int) -> float:
        """Compute the factor of one step."""
        rising = round(self.warmup * steps)
        if step < rising:
            return (step + 1) / rising
        return self.decay(min(1.0, (step - rising) / max(1, steps - rising)))

    @abstractmethod
    def decay(self, progress: float) -> float:
        """Compute the factor after the warm-up."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The full learning rate to the end."""

    name: ClassVar[str] = "constant"

    def decay(self, progress: float) -> float:
        """Stay; see `Schedule.decay`."""
        return 1.0


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line to 0."""

    name: ClassVar[str] = "linear"

    def decay(self, progress: float) -> float:
        """Fall evenly; see `Schedule.decay`."""
        return 1 - progress


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine to 0 (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts)."""

    name: ClassVar[str] = "cosine"

    def decay(self, progress: float) -> float:
        """Fall slowly, fast, slowly; see `Schedule.decay`."""
        return (1 + math.cos(math.pi * progress)) / 2


def restore_schedule(schedule: LambdaLR, state: dict) -> None:
    """Put a scheduler where another one was; a longer run goes on at the same step of the longer schedule."""
    schedule.load_state_dict(state)
    factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    for group, rate, factor in zip(schedule.optimizer.param_groups, schedule.base_lrs, factors, strict=True):
        group["lr"] = rate * factor


SCHEDULES: dict[str, type[Schedule]] = {s.name: s for s in (Constant, Linear, Cosine)}
