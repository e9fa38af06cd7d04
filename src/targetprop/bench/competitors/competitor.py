"""What a competitor is: settings with a search space, which make a stepper for one network."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from targetprop.bench.losses import SampledLoss
from targetprop.settings import check_ranges, check_types
from targetprop.sweep.space import Range

# Ranges span a hundredfold around the usual setting (momenta go down to none): few trials in a wider one find nothing.
RATE, MOMENTUM, AVERAGE = Range(1e-4, 1e-2), Range(3e-2, 1.0, complement=True), Range(3e-4, 3e-2, complement=True)

_SHARES, _COUNTS = ("momentum", "average", "decay"), ("every", "local_steps")
_SIZES = ("lr", "damping", "clip", "gamma", "bias_rate", "least")


class Stepper(ABC):
    """A competitor at work on one network."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Keep the optimisers."""
        self.optimizers = tuple(optimizers)

    @abstractmethod
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Change the weights once."""


@dataclass(frozen=True)
class Competitor(ABC):
    """Settings of a competitor."""

    lr: float
    space: ClassVar[Mapping[str, Range]]

    def __post_init__(self) -> None:
        """Check the settings, whose names mean the same in all competitors; a wrong one raises `ValueError`."""
        check_types(self, "competitor ")
        settings = self.settings()
        check_ranges(
            self, "competitor ",
            **{n: (0 <= settings[n] < 1, "a share in [0, 1)") for n in _SHARES if n in settings},
            **{n: (settings[n] >= 1, "a whole number ≥ 1") for n in _COUNTS if n in settings},
            **{n: (settings[n] >= 0, "a number ≥ 0") for n in _SIZES if n in settings},
        )  # fmt: skip

    @abstractmethod
    def start(self, network: nn.Module, loss: SampledLoss, example: Tensor, seed: int) -> Stepper:
        """Attach it to a network."""

    def settings(self) -> dict[str, Any]:
        """List the settings by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class GradientCompetitor(Competitor):
    """Back-propagation with some optimisers."""

    @abstractmethod
    def optimizers(self, network: nn.Module) -> list[torch.optim.Optimizer]:
        """Make the optimisers."""

    def start(self, network: nn.Module, loss: SampledLoss, example: Tensor, seed: int) -> Stepper:
        """Attach the optimisers; see `Competitor.start`."""

        def back_propagate(x: Tensor, y: Tensor) -> Tensor:
            value = loss(network(x), y)
            value.backward()
            return value

        return GradientStepper(back_propagate, self.optimizers(network))


class GradientStepper(Stepper):
    """Fills ``.grad``, then lets the optimisers step."""

    def __init__(self, fill: Callable[[Tensor, Tensor], Tensor], optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Keep the parts; ``fill`` returns the loss."""
        super().__init__(optimizers)
        self._fill = fill

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Step down the gradient; see `Stepper.step`."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        value = self._fill(x, y)
        for optimizer in self.optimizers:
            optimizer.step()
        return value.detach()
