r"""Badly conditioned regression with a known optimum: ``y = T x``, least loss 0.

The inputs' covariance is ``Q diag(s) Qᵀ``, ``Q`` a random rotation and ``s`` spaced evenly in logarithms from 1 down to
1/condition. Without hidden layers the loss is quadratic in the weights and its Hessian has that condition number (the
bias apart); with one linear hidden layer it is no longer convex, and the least loss is still 0.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from targetprop.bench.losses import HalfSquaredError
from targetprop.bench.problems.problem import Problem, Task, dense
from targetprop.settings import check_ranges

_MOST = 1e12  # beyond it, the rounding of the data in float32 shows in the least loss


@dataclass(frozen=True)
class Regression(Problem):
    """Linear regression, or a product of two matrices.

    Attributes:
        inputs: dimensions of ``x``.
        outputs: dimensions of ``y``.
        hidden: units of the linear hidden layer; 0 has none.
        condition: condition number of the inputs' covariance.
        samples: training samples, and a quarter of them for testing.
        data_seed: seed of the data.
    """

    batch: int = 200
    inputs: int = 50
    outputs: int = 10
    hidden: int = 0
    condition: float = 1e4
    samples: int = 2000
    data_seed: int = 0
    name: ClassVar[str] = "regression"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_ranges(
            self,
            inputs=(self.inputs >= 1, "a whole number ≥ 1"),
            outputs=(self.outputs >= 1, "a whole number ≥ 1"),
            hidden=(self.hidden >= 0, "a whole number ≥ 0"),
            condition=(1 <= self.condition <= _MOST, f"a number from 1 to {_MOST:g}"),
            samples=(self.samples >= 4, "a whole number ≥ 4"),
            data_seed=(0 <= self.data_seed < 2**63, "a whole number from 0 to 2**63 − 1"),
        )  # fmt: skip
        if 0 < self.hidden < min(self.inputs, self.outputs):
            least = min(self.inputs, self.outputs)
            raise ValueError(f"hidden must be 0 or at least {least}, or the least loss is not 0; got {self.hidden}")

    def network(self, seed: int) -> nn.Sequential:
        """Build one or two linear layers; see `Problem.network`."""
        return dense([self.inputs, *([self.hidden] if self.hidden else []), self.outputs], seed, linear=[1])

    def load(self) -> Task:
        """Draw the data; see `Problem.load`."""
        generator = torch.Generator().manual_seed(self.data_seed)
        rotation = torch.linalg.qr(torch.randn(self.inputs, self.inputs, generator=generator)).Q
        scales = torch.logspace(0, -torch.log10(torch.tensor(self.condition)).item(), self.inputs).sqrt()
        x = torch.randn(self.samples + self.samples // 4, self.inputs, generator=generator) * scales @ rotation.T
        # The teacher weighs every direction by 1/√s, so that each is worth the same share of the first loss.
        teacher = torch.randn(self.outputs, self.inputs, generator=generator) / scales @ rotation.T
        y = x @ teacher.T / self.inputs**0.5
        return Task(x[: self.samples], y[: self.samples], x[self.samples :], y[self.samples :], HalfSquaredError(), {})
