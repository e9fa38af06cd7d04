r"""How good one approximate inverse is at what a run asks of it: contraction, residuals, convergence.

Where a layer widens its input, only the input-space iteration can converge, elsewhere the output-space iteration; the
contraction factor is measured on that smaller side, at the forward activation, where ``g`` is asked.

>>> import torch
>>> A = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
>>> x = torch.zeros(1, 2)
>>> problem = Problem(lambda x: x @ A.T, lambda y: 0.4 * y, torch.ones(1, 2), x, x)
>>> found = measure_inverse(AskedInverse(problem, "0.4", "autograd"), Difference(), delta=0.4 * torch.ones(1, 2))
>>> [round(v, 3) for v in (found.contraction, found.residual, found.converged)]       # 1 − 0.4, |(0.2, 0.6)| / |(1, 1)|
[0.6, 0.447, 1.0]
"""

from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from targetprop.decoders import LayerBank, LinearisedDecoder
from targetprop.diagnostics.angles import median
from targetprop.diagnostics.step_norm import Jacobian, step_norm
from targetprop.engine import TargetPropagation
from targetprop.inversion import (
    Difference,
    Direct,
    InputSpace,
    Inversion,
    Iteration,
    Krylov,
    Map,
    OutputSpace,
    Problem,
    per_sample,
    sample_norm,
    solve,
)
from targetprop.layers import Record

EXTRA_STEPS = 20
TRIAL_STEPS, TRIAL_TOLERANCE = 100, 1e-3
TRIAL_SIZE = 1e-2  # of ‖y₀‖: least change that a trial asks for, far above rounding and still small


@dataclass(frozen=True)
class InverseQuality:
    """What was measured of an inverse; medians over the samples that were asked for a change.

    Attributes:
        kind: what it is, in words.
        space: where the contraction factor is measured, the smaller side: "input" or "output".
        contraction: contraction factor; None where it cannot be differentiated.
        contraction_max: its largest value over samples.
        contraction_half: contraction factor with half the step size.
        contracting: share of samples at which the contraction factor is below 1.
        residual: ``‖t − f(x)‖ / ‖t − y₀‖`` of the run's own inversion; 0 is a perfect inverse, 1 no progress.
        residual_iterated: the same after `EXTRA_STEPS` further steps.
        converged: share of samples that come to rest, or as near to the target as `TRIAL_TOLERANCE` of the change asked
            for, within `TRIAL_STEPS` steps.
        diverged: share of samples whose steps grow instead.
        fallback: share of samples that diverged in the run's own inversion and took the difference target; None where
            it was not looked at.
    """

    kind: str
    space: Literal["input", "output"]
    contraction: float | None
    contraction_max: float | None
    contraction_half: float | None
    contracting: float | None
    residual: float | None
    residual_iterated: float | None
    converged: float | None
    diverged: float | None
    fallback: float | None = None


@dataclass(frozen=True, eq=False)
class AskedInverse:
    """An inverse and what was asked of it."""

    problem: Problem  # what was to be inverted
    kind: str  # what the inverse is, in words
    jacobian: Jacobian = "autograd"  # how ``J_f J_g`` is had, see `step_norm`


def asked_inverse(engine: TargetPropagation, record: Record, deltas: list[Tensor], index: int) -> AskedInverse:
    """Find the inverse of a layer (``index ≥ 1``), or of all from it to the output if the propagation is composite."""
    bank, method = engine.bank, engine.method
    layers, composite = record.layers[index:], method.propagation == "composite"
    problem = Problem(layers[0].f, _no_decoder, deltas[index], layers[0].x, layers[0].h)
    if composite:
        problem = replace(problem, f=_whole([layer.f for layer in layers]), change=deltas[-1], y0=record.output)
    if not method.inversion.needs_decoder:
        return AskedInverse(problem, f"none, {method.inversion.name}")
    g = bank.composite(record.layers[index:]) if composite else bank.inverse(record.layers[index])
    kind = engine.kinds().get(layers[0].layer.name, method.decoder.name)
    asked = AskedInverse(replace(problem, g=g), kind)
    decoders = list(bank.layers.values())[index - 1 :] if isinstance(bank, LayerBank) else []
    # Conjugate gradients cannot be differentiated usefully; of one layer, their J_f J_g is symmetric.
    if not any(isinstance(d, LinearisedDecoder) for d in (decoders if composite else decoders[:1])):
        return asked
    return replace(asked, jacobian="unknown" if composite and len(layers) > 1 else "symmetric")


def measure_inverse(asked: AskedInverse, rule: Inversion, delta: Tensor) -> InverseQuality:
    """Measure an inverse at what it was asked for; ``delta`` is what the run found, ``x − x₀``."""
    p = asked.problem
    widening = not rule.needs_decoder or p.x0[0].numel() < p.y0[0].numel()
    alpha = rule.alpha if isinstance(rule, Iteration) else 1.0
    factors, halved = (
        step_norm(p, rule, step, widening=widening, jacobian=asked.jacobian) for step in (alpha, alpha / 2)
    )
    size = sample_norm(p.change)
    own = sample_norm(p.change - (p.f(p.x0 + delta) - p.y0))
    further = solve(p, iterated(rule, EXTRA_STEPS, widening), measure=True).forward_residual
    larger = torch.where(size > 0, TRIAL_SIZE * sample_norm(p.y0) / size, 1.0).clamp_min(1.0)
    trial = _to_rest(iterated(rule, 0, widening))
    asked_for = replace(p, change=p.change * per_sample(larger, p.change))
    ended = solve(asked_for, trial, measure=True)
    assert further is not None and ended.forward_residual is not None
    reached = ended.converged | (ended.forward_residual <= TRIAL_TOLERANCE * larger * size)
    diverged = ~reached & ended.diverged
    return InverseQuality(
        kind=asked.kind,
        space="input" if widening else "output",
        contraction=_middle(factors),
        contraction_max=None if factors is None else float(factors.max()),
        contraction_half=_middle(halved),
        contracting=None if factors is None else _share(factors < 1),
        residual=median(own / size),
        residual_iterated=median(further / size),
        converged=_share(reached[size > 0]),
        diverged=_share(diverged[size > 0]),
    )


def iterated(rule: Inversion, steps: int, widening: bool) -> Iteration | Krylov:
    """Lengthen a rule by steps of the iteration that it begins: output-space, or input-space where the layer widens."""
    if isinstance(rule, Iteration | Krylov):
        return replace(rule, steps=rule.steps + steps)
    if isinstance(rule, Difference) and widening:
        return InputSpace(steps=steps + 1)
    return OutputSpace(steps=steps, differential=not isinstance(rule, Direct))


def _to_rest(rule: Iteration | Krylov) -> Inversion:
    """As many steps as a trial takes; a Krylov step keeps all steps before it, and needs far fewer."""
    if isinstance(rule, Krylov):
        return replace(rule, steps=max(rule.steps, EXTRA_STEPS))
    return replace(rule, steps=TRIAL_STEPS, tolerance=TRIAL_TOLERANCE)


def _whole(maps: list[Map]) -> Map:
    return lambda x: reduce(lambda value, f: f(value), maps, x)


def _middle(values: Tensor | None) -> float | None:
    return None if values is None else float(values.quantile(0.5))


def _share(mask: Tensor) -> float | None:
    return float(mask.double().mean()) if len(mask) else None


def _no_decoder(y: Tensor) -> Tensor:
    raise RuntimeError("this inversion rule was said not to need a decoder")
