r"""LocoProp: every layer takes several steps on a local problem whose target is one gradient step away.

With inputs ``a`` held fixed and ``g`` the per-sample gradient at the map's output ``z₀``, step ``t`` of ``T`` descends

    squared (LocoProp-S)    ``½ ‖W a − (z₀ − γ g)‖²``                    gradient ``(W a − z₀ + γ g) aᵀ``
    matching (LocoProp-M)   the matching loss of the activation ``f``    gradient ``(f(W a) − f(z₀) + γ g) aᵀ``

by RMSProp or gradient descent, with a learning rate that falls as ``1 − t/T``. The first of these steps is a gradient
step at rate ``γ lr``. Source: Amid, Anil & Warmuth 2022, arXiv:2106.06199. The output layer has no activation here: the
gradient already knows the loss.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from targetprop.bench.competitors.competitor import AVERAGE, RATE, Competitor, Range, Stepper
from targetprop.bench.competitors.maps import Map, in_sequence, output_gradients, run_forward
from targetprop.bench.losses import SampledLoss


@dataclass(frozen=True)
class LocoProp(Competitor):
    """LocoProp."""

    lr: float = 1e-3
    gamma: float = 1e-1  # ``γ``, how far the targets lie
    average: float = 0.99  # share of the old second moment that is kept (RMSProp)
    local_steps: int = 10  # ``T``
    kind: Literal["squared", "matching"] = "matching"  # the local loss
    optimizer: Literal["rmsprop", "sgd"] = "rmsprop"  # what takes the local steps
    space: ClassVar = {"lr": RATE, "gamma": Range(1e-2, 1e1), "average": AVERAGE}

    def start(self, network: nn.Module, loss: SampledLoss, example: Tensor, seed: int) -> Stepper:
        """Make the local optimiser; see `Competitor.start`."""
        return LocoPropStepper(self, in_sequence(network), loss)


class LocoPropStepper(Stepper):
    """LocoProp on one network."""

    def __init__(self, settings: LocoProp, network: nn.Sequential, loss: SampledLoss) -> None:
        """Make the optimiser."""
        if settings.optimizer == "sgd":
            super().__init__([torch.optim.SGD(network.parameters(), settings.lr)])
        else:
            super().__init__([torch.optim.RMSprop(network.parameters(), settings.lr, settings.average)])
        self._settings, self._network, self._loss = settings, network, loss

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Set the targets and approach them; see `Stepper.step`."""
        output, maps = run_forward(self._network, x)
        value = self._loss(output, y)
        gradients = output_gradients(value, maps)
        optimizer, steps = self.optimizers[0], self._settings.local_steps
        rates = [group["lr"] for group in optimizer.param_groups]
        with torch.no_grad():
            targets = [self._seen(m, m.z) - self._settings.gamma * g for m, g in zip(maps, gradients, strict=True)]
            for t in range(steps):
                for one, target in zip(maps, targets, strict=True):
                    missed = self._seen(one, one.a @ one.weight.T) - target
                    one.set_gradient(missed.T @ one.a / len(x))
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * (1 - t / steps)
                optimizer.step()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        return value.detach()

    def _seen(self, one: Map, z: Tensor) -> Tensor:
        """Map outputs to where the local loss compares them."""
        matching = self._settings.kind == "matching" and one.activation is not None
        return one.activation(z) if matching and one.activation is not None else z
