r"""Updates by damped inverses and ``K`` steps, and what dense algebra predicts: ``Δ_{l-1} = B_l(λ, K) Δ_l``.

``B(λ, K) = (I − (I − J_g J_f)^K) J_f⁺`` with ``J_g = J_fᵀ (J_f J_fᵀ + λ m I)⁻¹``, where ``m`` is the mean of the
diagonal of ``J_f J_fᵀ``.
"""

import torch
from torch import Tensor

import targetprop as tp
from targetprop.claims.measure.trial import Trial
from targetprop.diagnostics import DenseInverse, damped_inverse, gauss_newton_steps, layer_jacobians
from targetprop.diagnostics.angles import angle as directions_angle
from targetprop.inversion import Inversion
from targetprop.targets import Propagation
from targetprop.updates import Update

_BETA = 1e-9


def damped_method(
    damping: float,
    steps: int,
    update: Update,
    inversion: Inversion | None = None,
    propagation: Propagation = "layerwise",
) -> tp.Method:
    """Compose exact damped decoders with an iteration."""
    return tp.Method(
        output_target=tp.GradientStep(_BETA * (1 + damping / steps) ** 2),
        decoder=DenseInverse(1.0, damping, relative=True),
        inversion=tp.InputSpace(steps=steps, tolerance=0.0) if inversion is None else inversion,
        propagation=propagation,
        update=update,
    )


class Oracle:
    """Dense algebra for one trial."""

    def __init__(self, trial: Trial) -> None:
        """Take the Jacobians of all layers."""
        self.record = trial.record()
        self.jacobians = [J.detach() for J in layer_jacobians(self.record)]
        self.output = -2 / trial.y.shape[1] * (self.record.output - trial.y)  # −∂C/∂h_L per sample

    def gauss_newton(self) -> list[Tensor]:
        """Average block-diagonal Gauss-Newton steps ``J_θ⁺ Δ_L`` over the batch."""
        steps = [gauss_newton_steps(self.record, self.output, sample) for sample in range(len(self.output))]
        return [-torch.stack(layer).mean(0) for layer in zip(*steps, strict=True)]

    def changes(self, damping: float, steps: int) -> list[Tensor]:
        """Predict ``Δ_1 … Δ_L``, per unit of ``β``."""
        deltas = [self.output]
        for J in reversed(self.jacobians[1:]):
            G = damped_inverse(J, 1.0, damping * float(J.square().sum(2).mean()))
            eye = torch.eye(J.shape[2], dtype=J.dtype)
            B = (eye - torch.linalg.matrix_power(eye - G @ J, steps)) @ torch.linalg.pinv(J)
            deltas.append((B @ deltas[-1].unsqueeze(2)).squeeze(2))
        return deltas[::-1]

    def updates(self, changes: list[Tensor], *, delta_rule: bool) -> list[Tensor]:
        """Turn changes into ``.grad`` by the formula of the local update."""
        found = []
        for layer, delta in zip(self.record.layers, changes, strict=True):
            (a,) = (use.input for use in layer.maps)
            assert a is not None
            scaled = -delta / (a.square().sum(1, keepdim=True) + 1 if delta_rule else 1) / len(a)
            found.append(torch.cat([(scaled.T @ a).flatten(), scaled.sum(0)]))
        return found


def angle(a: list[Tensor], b: list[Tensor]) -> float:
    """Measure the angle between two updates whose layers are all scaled to norm 1, without the output layer."""
    u, v = (torch.cat([_unit(layer) for layer in update[:-1]]) for update in (a, b))
    degrees = float(directions_angle(u[None], v[None]))
    return 90.0 if degrees != degrees else degrees


def deviation(found: list[Tensor], predicted: list[Tensor]) -> float:
    """Compare an update with its prediction."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, predicted, strict=True))


def _unit(values: Tensor) -> Tensor:
    return values / values.norm().clamp_min(torch.finfo(values.dtype).tiny)
