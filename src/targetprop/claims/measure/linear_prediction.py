r"""What targets of a small output change ``βv`` should be, and by how much they should miss it, by dense algebra.

With ``F`` the layers above ``h_l`` and ``J`` its Jacobian, ``F(h_l + Δ) = h_L + βv`` has the solution

    ``Δ_l = β u − ½ β² J⁻¹ D²F[u, u] + O(β³)``,   ``u = J⁻¹ v``:

linear in ``β`` up to the curvature. What arithmetic adds is of the size of the rounding of every activation on the way,
carried down by the inverses: ``eps Σ_{j ≥ l} ‖J_{l→j}⁻¹‖ ‖h_j‖``, with the norm of a random vector's image.
"""

from dataclasses import dataclass
from functools import reduce
from math import log10, nan

import torch
from torch import Tensor
from torch.func import jvp

import targetprop as tp
from targetprop.claims.measure.trial import Trial
from targetprop.diagnostics import DenseInverse, layer_jacobian, output_jacobians
from targetprop.inversion import Inversion, sample_norm
from targetprop.layers import LayerRecord, Record

SMALLEST_FITTED, LARGEST_FITTED = 1e-5, 0.032  # above it the third order shows


@dataclass(frozen=True, eq=False)
class Linear:
    """The prediction of one layer."""

    change: Tensor  # ``J_{l→L}⁻¹ v``, shape of ``h_l``
    size: float  # its norm, root mean square over samples
    curvature: float  # ``½ ‖J⁻¹ D²F[u, u]‖``, root mean square over samples: the error is ``curvature · β²``
    rounding: float  # ``Σ_j ‖J_{l→j}⁻¹‖ ‖h_j‖``, root mean square over samples: the error's floor is ``rounding · eps``


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


def predict(record: Record, v: Tensor) -> list[Linear]:
    """Predict the targets of all hidden layers of an invertible network."""
    found = []
    for index, jacobian in enumerate(output_jacobians(record)[:-1]):
        layer, above = record.layers[index], record.layers[index + 1 :]
        change = torch.linalg.solve(jacobian, v)
        bend = torch.linalg.solve(jacobian, _second_derivative(above, layer.h, change))
        found.append(Linear(change, rms(change), 0.5 * rms(bend), _rounding(layer.h, above)))
    return found


def without_iteration(record: Record, change: Tensor, error: Tensor, *, direct: bool) -> list[Tensor]:
    """Carry a change down by one call each of decoders ``(I + E) ∘ g_l``, ``g_l`` the inverse linearised at ``h_l``."""
    found = [change]
    for layer in reversed(record.layers[1:]):
        inverted = torch.linalg.solve(layer_jacobian(layer), found[-1])
        found.append(inverted + (inverted + layer.x if direct else inverted) @ error.T)
    return found[:0:-1]


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


def rms(vectors: Tensor) -> float:
    """Root mean square over samples of their norms."""
    return float(sample_norm(vectors.double()).square().mean().sqrt())


def _second_derivative(above: tuple[LayerRecord, ...], h: Tensor, u: Tensor) -> Tensor:
    """``D²F(h)[u, u]``."""

    def forward(x: Tensor) -> Tensor:
        return reduce(lambda value, layer: layer.f(value), above, x)

    def slope(x: Tensor) -> Tensor:
        return jvp(forward, (x,), (u,))[1]

    return jvp(slope, (h,), (u,))[1].detach()


def _rounding(h: Tensor, above: tuple[LayerRecord, ...]) -> float:
    inverse = torch.eye(h.shape[1], dtype=h.dtype).expand(len(h), -1, -1)
    total = sample_norm(h)
    for layer in above:
        inverse = inverse @ torch.linalg.inv(layer_jacobian(layer))
        # Frobenius over √d: how much longer a random vector becomes.
        total = total + sample_norm(inverse) / h.shape[1] ** 0.5 * sample_norm(layer.h)
    return float(total.square().mean().sqrt())
