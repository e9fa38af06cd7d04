"""Back-propagation with optimisers that treat a weight matrix as a matrix: Muon, SOAP and Shampoo, from packages.

Muon is PyTorch's; SOAP (Vyas 2024, arXiv:2409.11321) and Shampoo with grafting (Gupta 2018, arXiv:1802.09568; Anil
2020, arXiv:2002.09018) are those of pytorch-optimizer. Weight decay is off: the bench applies the problem's own.
"""

from dataclasses import dataclass
from typing import ClassVar

import pytorch_optimizer
import torch
from pytorch_optimizer.optimizer.utils.graft import LayerWiseGrafting
from torch import Tensor, nn

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

_EVERY = 10  # steps that one basis or root serves


@dataclass(frozen=True)
class Muon(Competitor):
    """Muon for the matrices, with steps of the size of Adam's, and Adam for the biases."""

    lr: float = 1e-3
    momentum: float = 0.95  # share of the old first moment that is kept
    bias_rate: float = 1.0  # learning rate of the biases, as a multiple of that of the matrices
    space: ClassVar = {"lr": RATE, "momentum": MOMENTUM, "bias_rate": Range(1e-1, 1e1)}

    def start(self, network: nn.Sequential, loss: SampledLoss, example: Tensor, seed: int) -> Stepper:
        """Make both optimisers; see `Competitor.start`."""
        matrices = [p for p in network.parameters() if p.ndim == 2]
        others = [p for p in network.parameters() if p.ndim != 2]
        muon = torch.optim.Muon(
            matrices, self.lr, weight_decay=0.0, momentum=self.momentum, adjust_lr_fn="match_rms_adamw"
        )
        return GradientStepper(network, loss, muon, torch.optim.Adam(others, self.lr * self.bias_rate))


@dataclass(frozen=True)
class Soap(Competitor):
    """SOAP: Adam in the eigenbasis of Shampoo's factors."""

    lr: float = 3e-3
    momentum: float = 0.95  # share of the old first moment that is kept
    average: float = 0.95  # share of the old second moments that is kept, the factors' too
    space: ClassVar = {"lr": RATE, "momentum": MOMENTUM, "average": Range(5e-3, 5e-1, complement=True)}

    def start(self, network: nn.Sequential, loss: SampledLoss, example: Tensor, seed: int) -> Stepper:
        """Make the optimiser; see `Competitor.start`."""
        optimizer = pytorch_optimizer.SOAP(
            network.parameters(),
            self.lr,
            (self.momentum, self.average),
            weight_decay=0.0,
            precondition_frequency=_EVERY,
        )
        return GradientStepper(network, loss, optimizer)


@dataclass(frozen=True)
class Shampoo(Competitor):
    """Shampoo in blocks of 512, with the step length of RMSProp."""

    lr: float = 1e-3
    momentum: float = 0.9  # share of the last change that is kept
    average: float = 0.99  # share of the old factors that is kept
    space: ClassVar = {"lr": RATE, "momentum": MOMENTUM, "average": AVERAGE}

    def start(self, network: nn.Sequential, loss: SampledLoss, example: Tensor, seed: int) -> Stepper:
        """Make the optimiser; see `Competitor.start`."""
        optimizer = pytorch_optimizer.ScalableShampoo(
            network.parameters(),
            self.lr,
            (self.momentum, self.average),
            start_preconditioning_step=_EVERY,
            preconditioning_compute_steps=_EVERY,
            graft_type=LayerWiseGrafting.RMSPROP,
        )
        return GradientStepper(network, loss, optimizer)
