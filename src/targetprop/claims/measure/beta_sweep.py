r"""Errors of targets over a range of β, in one precision, and how they compare with their prediction."""

from dataclasses import dataclass
from math import log10, nan

import torch

import targetprop as tp
from targetprop.claims.measure.linear_prediction import Linear, rms
from targetprop.claims.measure.trial import Trial
from targetprop.diagnostics import DenseInverse
from targetprop.inversion import Inversion

SMALLEST_FITTED, LARGEST_FITTED = 1e-5, 0.032  # above it the third order shows


@dataclass(frozen=True, eq=False)
class Sweep:
    """Errors over β; layers are counted from 0, the lowest."""

    betas: list[float]  # sizes of the output's change
    errors: list[list[float]]  # ``‖Δ_l(β) − βu‖``, root mean square over samples, a list over β for each hidden layer
    eps: float  # of the precision
    linear: list[Linear]  # the prediction for each hidden layer

    def slope(self, layer: int) -> float:
        """Fit the slope of log error on log β, where curvature is well above rounding."""
        where = [i for i in self._curved(layer, 5.0) if SMALLEST_FITTED <= self.betas[i] <= LARGEST_FITTED]
        x, y = (
            torch.tensor([values[i] for i in where], dtype=torch.float64).log10()
            for values in (self.betas, self.errors[layer])
        )
        x = x - x.mean()
        return float((x * y).sum() / x.square().sum()) if len(where) > 1 else nan

    def against_curvature(self, layer: int) -> float:
        """Divide the error by ``½β²‖J⁻¹D²F[u, u]‖``, where nothing else counts."""
        where = [i for i in self._curved(layer, 50.0) if self.betas[i] <= 1e-3]
        ratios = [self.errors[layer][i] / (self.linear[layer].curvature * self.betas[i] ** 2) for i in where]
        return farthest(ratios, 1.0)

    def against_floor(self, layer: int) -> float:
        """Divide the error by the predicted rounding, where curvature is small beside it and the target is not."""
        linear = self.linear[layer]
        floor = linear.rounding * self.eps
        flat = [
            log10(error / floor)
            for beta, error in zip(self.betas, self.errors[layer], strict=True)
            if linear.curvature * beta**2 <= 0.1 * floor and linear.size * beta >= 10 * floor and error > 0
        ]
        return 10 ** (sum(flat) / len(flat)) if flat else nan

    def relative(self, layer: int) -> list[float]:
        """Divide the error by the size of the target."""
        size = self.linear[layer].size
        return [error / (beta * size) for beta, error in zip(self.betas, self.errors[layer], strict=True)]

    def best(self, layer: int) -> tuple[float, float]:
        """Find where the relative error is smallest."""
        error, beta = min(zip(self.relative(layer), self.betas, strict=True))
        return beta, error

    def _curved(self, layer: int, factor: float) -> list[int]:
        linear = self.linear[layer]
        floor = factor * linear.rounding * self.eps
        return [i for i, beta in enumerate(self.betas) if linear.curvature * beta**2 >= floor]


def sweep_beta(trial: Trial, betas: list[float], rule: Inversion, linear: list[Linear], eps: float) -> Sweep:
    """Carry smaller and smaller changes down, by exact inverses as the trial alters them."""
    rows = []
    for beta in betas:
        exact, output = DenseInverse(w=1.0, damping=0.0), tp.GradientStep(beta)
        found = trial.changes(tp.Method(output_target=output, decoder=exact, inversion=rule))[:-1]
        rows.append([rms(d.double() - beta * layer.change) for d, layer in zip(found, linear, strict=True)])
    return Sweep(betas, [list(layer) for layer in zip(*rows, strict=True)], eps, linear)


def farthest(values: list[float], wanted: float) -> float:
    """Choose the value farthest from another."""
    return nan if any(value != value for value in values) else max(values, key=lambda v: abs(v - wanted), default=nan)
