r"""Layers that shrink: ``J_{l+1}⁺ … J_L⁺ Δ_L`` is not ``(J_L … J_{l+1})⁺ Δ_L``, the shortest way to ``Δ_L``.

Transposes compose where pseudo-inverses do not, ``J_{l+1}ᵀ … J_Lᵀ = (J_L … J_{l+1})ᵀ``: input-space iteration with them
on the composite map is Landweber's, and converges to the pseudo-inverse of the product.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import targetprop as tp
from targetprop.claims.altered import Alter
from targetprop.claims.measure.trial import Trial, direction_error, relative_error
from targetprop.claims.networks import DTYPE, random_network
from targetprop.diagnostics import DenseInverse, damped_inverse, gauss_newton_steps, layer_jacobian, output_jacobians
from targetprop.layers import Cut

_CUTS: tuple[Cut, ...] = ("pre-activation", "post-activation")
_REMEDY_STEPS = 24
_ALONE = 4  # samples whose weight changes are looked at
_TRANSPOSE = DenseInverse(w=0.0, damping=1.0)


@dataclass(frozen=True)
class Shrinking:
    """How far the targets of a shrinking network are from Gauss-Newton's; layers are ``1 … L − 1``."""

    measured: list[float]  # mean cosine over samples by layer, pseudo-inverses layer by layer
    predicted: list[float]  # the same of the product of dense pseudo-inverses
    composite: list[float]  # smallest cosine by layer, composite propagation through transposes
    product_error: float  # largest relative distance of a change from the product of pseudo-inverses
    reach_error: float  # largest relative distance of ``J_{l→L} Δ_l`` from ``Δ_L``
    # smallest cosine of the delta rule's steps to Gauss-Newton's with composite targets, by cut
    weights: dict[str, float]


def shrinking_layers(seed: int, widths: tuple[int, ...], batch: int, beta: float, alter: Alter) -> Shrinking:
    """Measure targets by pseudo-inverses where every layer is smaller than the one below."""
    generator = torch.Generator().manual_seed(seed + 1)  # weights are drawn from the seed itself
    x, y = (torch.randn(batch, width, dtype=DTYPE, generator=generator) for width in (widths[0], widths[-1]))
    network = random_network(widths, nn.Tanh, seed, spread=3.0)
    trial = Trial(network, x, y, nn.MSELoss(reduction="sum"), cut=_CUTS[0], alter=alter)
    record = trial.record()
    jacobians = output_jacobians(record)[:-1]
    exact, rule = DenseInverse(w=1.0, damping=0.0), tp.InputSpace(steps=4, tolerance=0.0)
    found = trial.changes(tp.Method(output_target=tp.GradientStep(beta), decoder=exact, inversion=rule))
    product = [found[-1]]
    for layer in reversed(record.layers[1:]):
        product.append(_times(damped_inverse(layer_jacobian(layer), 1.0, 0.0), product[-1]))
    wanted = [_times(torch.linalg.pinv(J), found[-1]) for J in jacobians]
    composite = trial.changes(_composite(jacobians, beta))
    pairs = list(zip(found[:-1], product[:0:-1], wanted, composite[:-1], jacobians, strict=True))
    return Shrinking(
        measured=[1 - float(direction_error(a, gn).mean()) for a, _, gn, _, _ in pairs],
        predicted=[1 - float(direction_error(p, gn).mean()) for _, p, gn, _, _ in pairs],
        composite=[1 - float(direction_error(c, gn).max()) for _, _, gn, c, _ in pairs],
        product_error=max(float(relative_error(a, p).max()) for a, p, _, _, _ in pairs),
        reach_error=max(float(relative_error(_times(J, a), found[-1]).max()) for a, _, _, _, J in pairs),
        weights={cut: _weights(replace(trial, cut=cut), beta) for cut in _CUTS},
    )


def _composite(jacobians: list[Tensor], beta: float) -> tp.Method:
    """Landweber's iteration with ``α < 2 / ‖J‖²`` for every layer, mixed so that it needs few steps."""
    largest = max(float(torch.linalg.matrix_norm(J, ord=2).max()) for J in jacobians)
    outputs = jacobians[-1].shape[1]
    return tp.Method(
        output_target=tp.GradientStep(beta),
        decoder=_TRANSPOSE,
        inversion=tp.InputSpace(steps=_REMEDY_STEPS, alpha=min(1.0, largest**-2), tolerance=0.0, anderson=outputs),
        propagation="composite",
        update=tp.DeltaRule(pullback_damping=0.0),
    )


def _weights(trial: Trial, beta: float) -> float:
    """Smallest cosine of the delta rule's step to Gauss-Newton's with composite targets, a few samples, all layers."""
    worst = 0.0
    for index in range(min(_ALONE, len(trial.x))):
        alone = trial.sample(index)
        record = alone.record()
        found = alone.updates(_composite(output_jacobians(record)[:-1], beta))
        delta = -2 * beta * (record.output - alone.y)
        for a, b in zip(found, gauss_newton_steps(record, delta, sample=0), strict=True):
            worst = max(worst, float(direction_error(-a[None], b[None])))
    return 1 - worst


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(2)).squeeze(2)
