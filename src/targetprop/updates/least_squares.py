r"""Least squares: the local regression solved instead of stepped, ``ΔW = (Σ Δ aᵀ)(Σ a aᵀ + n μ I)⁻¹``.

With small gradient-like targets it is gradient descent on neurons (FOOF, Benzing 2022, arXiv:2201.12250).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from targetprop.regression import Covariance
from targetprop.updates.asked import Regression
from targetprop.updates.base import state_key
from targetprop.updates.linear import Pullback
from targetprop.updates.remembering import RememberingUpdate


@dataclass(frozen=True)
class LeastSquares(RememberingUpdate):
    """The regression of ``Δz`` on ``a``, with a running covariance and a factorisation that serves several steps.

    Attributes:
        pullback: see `LinearUpdate`.
        pullback_damping: see `LinearUpdate`.
        damping: ``μ``, relative to the mean of the diagonal of the covariance.
        shrinkage: ``κ``; ``μ + κ d/n`` is the damping while the covariance is worth ``n`` rows of ``d`` inputs.
        decay: share of the old covariance that each batch keeps, in [0, 1).
        every: steps that one factorisation serves.
        unit_scale: scale each layer's ``Δz`` to a root mean square of 1 over the batch first; ``.grad`` is then
            ``−ΔW`` of those, and the learning rate is the size of the step.
        shared: with ``unit_scale``, to 1/L, L the number of such maps: they move together, and changes that each ask
            for the same add up on their way to the output.
        bounded: shorten ``ΔW`` where ``‖Σ ΔW a‖ > ‖Σ Δz‖`` over the batch, which no regression on it would do: while
            activations grow, a running covariance is too small, and its steps several times too long.
    """

    pullback: Pullback = "transpose"
    damping: float = 0.1
    shrinkage: float = 1.0
    decay: float = 0.95
    every: int = 5
    unit_scale: bool = True
    shared: bool = True
    bounded: bool = True
    name: ClassVar[str] = "least-squares"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if min(self.damping, self.shrinkage) < 0 or not 0 <= self.decay < 1 or self.every < 1:
            raise ValueError(
                "least squares needs damping ≥ 0, shrinkage ≥ 0, decay in [0, 1) and every ≥ 1; got"
                f" {self.damping}, {self.shrinkage}, {self.decay} and {self.every}"
            )

    def memory(self, inputs: int, outputs: int, like: Tensor, *, top: bool) -> Covariance:
        """Make a running covariance; see `RememberingUpdate.memory`."""
        with like.device:  # the default one may be another
            return Covariance(inputs, self.decay, self.damping, self.every, self.shrinkage).to(like)

    def solve(self, asked: Regression, state: nn.ModuleDict) -> Tensor:
        """Solve the damped normal equations; see `LinearUpdate.solve`."""
        covariance, a, dz, batch = state[state_key(asked.name)], asked.a, asked.dz, asked.common.batch
        assert isinstance(covariance, Covariance)
        if len(covariance.average) != a.shape[1]:  # the map has other inputs now, or its bias is gone or frozen
            state[state_key(asked.name)] = covariance = self.memory(
                a.shape[1], dz.shape[1], covariance.average, top=False
            )
        moments, scale = covariance.observe(a, batch, keep=True), asked.scale
        if self.unit_scale:
            size = batch.mean(dz.square()).sqrt() * (len(state) if self.shared else 1)
            size = size.masked_fill(size == torch.inf, torch.nan)  # an overflow is to be seen, not divided by
            dz, scale = torch.where(size == 0, dz, dz / size), moments.rows
        product = (dz / scale).T @ a
        if not self.bounded:
            return moments.solve(product)
        batch.sum_([product])  # the bound holds for the step as a whole, so every process needs all of it
        change = moments.solve(product)
        predicted, wanted = (a @ change.T).square().sum(), (dz * (moments.rows / scale)).square().sum()
        batch.sum_([predicted, wanted])
        return change * (wanted / predicted).sqrt().clamp(max=1.0).nan_to_num(nan=1.0) / batch.processes
