r"""Targets by iterated damped inverses of invertible layers, against Gauss-Newton and against iterated Tikhonov.

With ``J_l = U S Vᵀ`` and ``J_g = J_lᵀ (J_l J_lᵀ + λI)⁻¹``, ``K`` input-space steps on the linear layer give
``V diag((1 − (λ/(s_i² + λ))ᴷ) / s_i) Uᵀ`` in place of ``J_l⁻¹``: iterated Tikhonov regularisation.
"""

import importlib
import warnings
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

import targetprop as tp
from targetprop.claims.measure.trial import Trial, direction_error, relative_error
from targetprop.diagnostics import (
    DenseInverse,
    backprop_gradients,
    gauss_newton_steps,
    layer_jacobian,
    output_jacobians,
    parameter_jacobians,
)  # fmt: skip
from targetprop.layers import Record

DAMPING = 0.05  # λ, relative to the mean of the diagonal of J Jᵀ
_DECODER = DenseInverse(w=1.0, damping=DAMPING, relative=True)
_DELTA_RULE = tp.DeltaRule(pullback_damping=0.0)
# Enough damping to factorise a covariance of fewer samples than inputs, too little to be seen in the step.
_LEAST_SQUARES = tp.LeastSquares(
    pullback="inverse", pullback_damping=0.0, damping=1e-8, shrinkage=0.0, decay=0.0, every=1, unit_scale=False
)


@dataclass(eq=False)
class Errors:
    """Errors by number of steps and layer, each the largest over samples."""

    direction: list[list[float]] = field(default_factory=list)  # ``1 − cosine``, a row per number of steps
    size: list[list[float]] = field(default_factory=list)  # ``‖a − b‖ / ‖b‖``, likewise

    def add(self, found: list[Tensor], wanted: list[Tensor]) -> None:
        """Compare a layer's vectors, a row per sample."""
        pairs = list(zip(found, wanted, strict=True))
        self.direction.append([float(direction_error(a, b).max()) for a, b in pairs])
        self.size.append([float(relative_error(a, b).max()) for a, b in pairs])


@dataclass(eq=False)
class Convergence:
    """What happened as the inversion's steps grew; activations of layers ``1 … L − 1``, weights of ``1 … L``."""

    activations: Errors = field(default_factory=Errors)  # ``Δ_l`` against ``J_{l→L}⁻¹ Δ_L``
    activations_predicted: Errors = field(default_factory=Errors)  # iterated Tikhonov's ``Δ_l`` against the same
    against_prediction: Errors = field(default_factory=Errors)  # ``Δ_l`` against iterated Tikhonov's
    weights: Errors = field(default_factory=Errors)  # the delta rule's steps on one sample against ``J_θ⁺ Δ_L``
    weights_predicted: Errors = field(default_factory=Errors)  # by iterated Tikhonov's ``Δ_l``, against the same
    weights_curvlinops: Errors = field(default_factory=Errors)  # against ``−β G⁺ ∂C/∂θ_l``; empty without curvlinops
    batch: Errors = field(default_factory=Errors)  # least squares' step against ``J_θ⁺ Δ_L`` of all samples at once


def converge(trial: Trial, steps: tuple[int, ...], beta: float) -> Convergence:
    """Invert with more and more steps, and compare."""
    found, record, n = Convergence(), trial.record(), len(trial.x)
    delta = -2 * beta * (record.output - trial.y)
    newton = [torch.linalg.solve(J, delta) for J in output_jacobians(record)[:-1]]
    alone = [trial.sample(i) for i in range(n)]
    records = [one.record() for one in alone]
    weights = _stack([gauss_newton_steps(r, delta[i : i + 1], sample=0) for i, r in enumerate(records)])
    pulls = [[torch.linalg.pinv(J) for J in parameter_jacobians(r, sample=0)] for r in records]
    curvature = [_curvlinops_steps(one, beta) for one in alone]
    together = _batch_steps(record, delta)
    for k in steps:
        rule = tp.InputSpace(steps=k, tolerance=0.0)
        method = tp.Method(output_target=tp.GradientStep(beta), decoder=_DECODER, inversion=rule)
        delta_rule, regression = (replace(method, update=update) for update in (_DELTA_RULE, _LEAST_SQUARES))
        changes, tikhonov = trial.changes(method)[:-1], _tikhonov(record, delta, k)[:-1]
        found.activations.add(changes, newton)
        found.activations_predicted.add(tikhonov, newton)
        found.against_prediction.add(changes, tikhonov)
        taken = [-beta * layer for layer in _stack([one.updates(delta_rule) for one in alone])]
        found.weights.add(taken, weights)
        found.weights_predicted.add(_tikhonov_weights(records, delta, pulls, k), weights)
        if curvature[0]:
            found.weights_curvlinops.add(taken, _stack(curvature))
        # The loss is a sum and the regression a mean, so `.grad` is n times the step.
        batch = trial.updates(regression)
        found.batch.add([-beta / n * gradient[None] for gradient in batch], [step[None] for step in together])
    return found


def _tikhonov(record: Record, delta: Tensor, steps: int) -> list[Tensor]:
    """``Δ_1 … Δ_L`` of linear layers after some steps, from their singular values."""
    changes = [delta]
    for layer in reversed(record.layers[1:]):
        jacobian = layer_jacobian(layer)
        damping = DAMPING * jacobian.square().sum(2).mean()
        U, s, Vh = torch.linalg.svd(jacobian)
        gain = (1 - (damping / (s.square() + damping)) ** steps) / s
        changes.append((Vh.mT @ (gain.unsqueeze(2) * (U.mT @ changes[-1].unsqueeze(2)))).squeeze(2))
    return changes[::-1]


def _tikhonov_weights(records: list[Record], delta: Tensor, pulls: list[list[Tensor]], steps: int) -> list[Tensor]:
    """``J_θ⁺ J_{l→L} Δ_l`` with iterated Tikhonov's ``Δ_l``: the smallest step that makes this change, by sample."""
    found = []
    for i, (record, pull) in enumerate(zip(records, pulls, strict=True)):
        changes = _tikhonov(record, delta[i : i + 1], steps)
        reached = [J[0] @ change[0] for J, change in zip(output_jacobians(record), changes, strict=True)]
        found.append([P @ v for P, v in zip(pull, reached, strict=True)])
    return _stack(found)


def _batch_steps(record: Record, delta: Tensor) -> list[Tensor]:
    """``J_θ⁺ Δ_L`` of each layer, with the outputs of all samples below each other."""
    samples = [parameter_jacobians(record, sample) for sample in range(len(delta))]
    return [torch.linalg.pinv(torch.cat(layer)) @ delta.flatten() for layer in zip(*samples, strict=True)]


def _curvlinops_steps(trial: Trial, beta: float) -> list[Tensor]:
    """``−β J_θ⁺ ∂C/∂h_L`` of one sample as ``−2β G⁺ ∂C/∂θ``, ``G = 2 J_θᵀ J_θ`` by curvlinops; empty without it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it depends on uses deprecated parts of PyTorch
        try:
            curvlinops = importlib.import_module("curvlinops")
        except ImportError:
            return []
        record, loss, found = trial.record(), nn.MSELoss(reduction="sum"), []
        gradients = backprop_gradients(record, 2 * (record.output - trial.y))
        for layer, gradient in zip(record.layers, gradients, strict=True):
            block = list(layer.layer.parameters())
            batch = [(trial.x, trial.y)]
            operator = curvlinops.GGNLinearOperator(trial.network, loss, block, batch, check_deterministic=False)
            G = operator @ torch.eye(len(gradient), dtype=gradient.dtype)
            found.append(-2 * beta * torch.linalg.pinv(G, rtol=1e-10, hermitian=True) @ gradient)
    return found


def _stack(samples: list[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(layer) for layer in zip(*samples, strict=True)]
