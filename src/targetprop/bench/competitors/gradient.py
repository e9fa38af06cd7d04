"""Back-propagation with the common optimisers of PyTorch."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from targetprop.bench.competitors.competitor import (
    AVERAGE,
    MOMENTUM,
    RATE,
    Competitor,
    GradientStepper,
    Range,
    Stepper,
)
from targetprop.bench.losses import SampledLoss


@dataclass(frozen=True)
class Nesterov(Competitor):
    """Gradient descent with Nesterov's momentum."""

    lr: float = 1e-2
    momentum: float = 0.9  # share of the last change that is kept
    clip: float = 10.0  # longest gradient; longer ones are cut to this norm
    space: ClassVar = {"lr": Range(1e-3, 1e-1), "momentum": MOMENTUM, "clip": Range(1e0, 1e2)}

    def start(self, network: nn.Sequential, loss: SampledLoss, example: Tensor, seed: int) -> Stepper:
        """Make the optimiser; see `Competitor.start`."""
        parameters = list(network.parameters())
        nesterov = self.momentum > 0
        optimizer = torch.optim.SGD(parameters, self.lr, momentum=self.momentum, nesterov=nesterov)
        optimizer.register_step_pre_hook(lambda *_: _clip(parameters, self.clip))
        return GradientStepper(network, loss, optimizer)


@dataclass(frozen=True)
class RMSProp(Competitor):
    """RMSProp."""

    lr: float = 1e-3
    average: float = 0.99  # share of the old second moment that is kept
    momentum: float = 0.9  # share of the last change that is kept
    space: ClassVar = {"lr": RATE, "average": AVERAGE, "momentum": MOMENTUM}

    def start(self, network: nn.Sequential, loss: SampledLoss, example: Tensor, seed: int) -> Stepper:
        """Make the optimiser; see `Competitor.start`."""
        optimizer = torch.optim.RMSprop(network.parameters(), self.lr, self.average, momentum=self.momentum)
        return GradientStepper(network, loss, optimizer)


@dataclass(frozen=True)
class Adam(Competitor):
    """Adam."""

    lr: float = 1e-3
    momentum: float = 0.9  # share of the old first moment that is kept
    average: float = 0.999  # share of the old second moment that is kept
    space: ClassVar = {"lr": RATE, "momentum": MOMENTUM, "average": AVERAGE}

    def start(self, network: nn.Sequential, loss: SampledLoss, example: Tensor, seed: int) -> Stepper:
        """Make the optimiser; see `Competitor.start`."""
        optimizer = torch.optim.Adam(network.parameters(), self.lr, (self.momentum, self.average))
        return GradientStepper(network, loss, optimizer)


def _clip(parameters: list[nn.Parameter], norm: float) -> None:
    clip_grad_norm_(parameters, norm)
