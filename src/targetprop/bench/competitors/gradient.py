"""Back-propagation with the common optimisers of PyTorch."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from targetprop.bench.competitors.competitor import AVERAGE, MOMENTUM, RATE, GradientCompetitor, Range


@dataclass(frozen=True)
class Nesterov(GradientCompetitor):
    """Gradient descent with Nesterov's momentum."""

    lr: float = 1e-2
    momentum: float = 0.9  # share of the last change that is kept
    clip: float = 10.0  # longest gradient; longer ones are cut to this norm
    space: ClassVar = {"lr": Range(1e-3, 1e-1), "momentum": MOMENTUM, "clip": Range(1e0, 1e2)}

    def optimizers(self, network: nn.Module) -> list[torch.optim.Optimizer]:
        """Make an optimiser that cuts gradients first; see `GradientCompetitor.optimizers`."""
        parameters = list(network.parameters())
        optimizer = torch.optim.SGD(parameters, self.lr, momentum=self.momentum, nesterov=self.momentum > 0)

        def clip(*_: object) -> None:
            clip_grad_norm_(parameters, self.clip)

        optimizer.register_step_pre_hook(clip)
        return [optimizer]


@dataclass(frozen=True)
class RMSProp(GradientCompetitor):
    """RMSProp."""

    lr: float = 1e-3
    average: float = 0.99  # share of the old second moment that is kept
    momentum: float = 0.9  # share of the last change that is kept
    space: ClassVar = {"lr": RATE, "average": AVERAGE, "momentum": MOMENTUM}

    def optimizers(self, network: nn.Module) -> list[torch.optim.Optimizer]:
        """Make the optimiser; see `GradientCompetitor.optimizers`."""
        return [torch.optim.RMSprop(network.parameters(), self.lr, self.average, momentum=self.momentum)]


@dataclass(frozen=True)
class Adam(GradientCompetitor):
    """Adam."""

    lr: float = 1e-3
    momentum: float = 0.9  # share of the old first moment that is kept
    average: float = 0.999  # share of the old second moment that is kept
    space: ClassVar = {"lr": RATE, "momentum": MOMENTUM, "average": AVERAGE}

    def optimizers(self, network: nn.Module) -> list[torch.optim.Optimizer]:
        """Make the optimiser; see `GradientCompetitor.optimizers`."""
        return [torch.optim.Adam(network.parameters(), self.lr, (self.momentum, self.average))]
