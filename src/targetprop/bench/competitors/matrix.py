"""Back-propagation with optimisers that treat a weight matrix as a matrix: Muon, SOAP and Shampoo, from packages.

Muon is PyTorch's; SOAP (Vyas 2024, arXiv:2409.11321) and Shampoo with grafting (Gupta 2018, arXiv:1802.09568; Anil
2020, arXiv:2002.09018) are those of pytorch-optimizer. Weight decay is off: the bench applies the problem's own.
"""

from dataclasses import dataclass
from typing import Any, ClassVar
from unittest.mock import patch

import pytorch_optimizer
import torch
from pytorch_optimizer.optimizer.utils.graft import LayerWiseGrafting
from torch import Tensor, nn

from targetprop.bench.competitors.competitor import AVERAGE, MOMENTUM, RATE, GradientCompetitor, Range

_EVERY = 10  # steps that one basis or root serves


class _Muon(torch.optim.Muon):
    """PyTorch's, orthogonalising in float32 on processors that take many times longer in bfloat16."""

    def step(self, closure: Any = None) -> Any:
        """Take a step."""
        capable = torch.cpu.get_capabilities()
        if self.param_groups[0]["params"][0].is_cuda or capable.get("avx512_bf16") or capable.get("amx_bf16"):
            return super().step(closure)
        with patch.object(Tensor, "bfloat16", Tensor.clone):
            return super().step(closure)


@dataclass(frozen=True)
class Muon(GradientCompetitor):
    """Muon for the matrices, with steps of the size of Adam's, and Adam for the rest, also tables and convolutions."""

    lr: float = 1e-3
    momentum: float = 0.95  # share of the old first moment that is kept
    bias_rate: float = 1.0  # learning rate of the biases, as a multiple of that of the matrices
    space: ClassVar = {"lr": RATE, "momentum": MOMENTUM, "bias_rate": Range(1e-1, 1e1)}

    def optimizers(self, network: nn.Module) -> list[torch.optim.Optimizer]:
        """Make both optimisers; see `GradientCompetitor.optimizers`."""
        tables = {m.weight for m in network.modules() if isinstance(m, nn.Embedding)}
        matrices = [p for p in network.parameters() if p.ndim == 2 and p not in tables]
        others = [p for p in network.parameters() if p.ndim != 2 or p in tables]
        muon = _Muon(matrices, self.lr, weight_decay=0.0, momentum=self.momentum, adjust_lr_fn="match_rms_adamw")
        return [muon, torch.optim.Adam(others, self.lr * self.bias_rate)]


@dataclass(frozen=True)
class Soap(GradientCompetitor):
    """SOAP: Adam in the eigenbasis of Shampoo's factors."""

    lr: float = 3e-3
    momentum: float = 0.95  # share of the old first moment that is kept
    average: float = 0.95  # share of the old second moments that is kept, the factors' too
    space: ClassVar = {"lr": RATE, "momentum": MOMENTUM, "average": Range(5e-3, 5e-1, complement=True)}

    def optimizers(self, network: nn.Module) -> list[torch.optim.Optimizer]:
        """Make the optimiser; see `GradientCompetitor.optimizers`."""
        betas = (self.momentum, self.average)
        parameters = network.parameters()
        return [pytorch_optimizer.SOAP(parameters, self.lr, betas, weight_decay=0.0, precondition_frequency=_EVERY)]


@dataclass(frozen=True)
class Shampoo(GradientCompetitor):
    """Shampoo in blocks of 512, with the step length of RMSProp."""

    lr: float = 1e-3
    momentum: float = 0.9  # share of the last change that is kept
    average: float = 0.99  # share of the old factors that is kept
    space: ClassVar = {"lr": RATE, "momentum": MOMENTUM, "average": AVERAGE}

    def optimizers(self, network: nn.Module) -> list[torch.optim.Optimizer]:
        """Make the optimiser; see `GradientCompetitor.optimizers`."""
        optimizer = pytorch_optimizer.ScalableShampoo(
            network.parameters(), self.lr, (self.momentum, self.average), start_preconditioning_step=_EVERY,
            preconditioning_compute_steps=_EVERY, graft_type=LayerWiseGrafting.RMSPROP,
        )  # fmt: skip
        return [optimizer]
