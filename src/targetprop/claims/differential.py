r"""For small β, targets are linear in β: what makes target propagation differential (Bengio 2020, arXiv:2007.15139).

``Δ_l(β) = β J_{l→L}⁻¹ v + O(β²)`` with ``v = −∂C/∂h_L``: the error has slope 2 in log-log, down to rounding. Taken in
float64 and float32 behind decoders whose Jacobians are 10 % off, which iteration repairs; then without iteration.
"""

from math import log10

import torch
from torch import Tensor, nn

import targetprop as tp
from targetprop.claims.altered import Alter, unaltered
from targetprop.claims.claim import Claim, Number, Table, format_number
from targetprop.claims.measure.linear_prediction import (
    Linear,
    Sweep,
    farthest,
    predict,
    rms,
    sweep_beta,
    without_iteration,
)  # fmt: skip
from targetprop.claims.measure.trial import Trial
from targetprop.claims.networks import orthogonal, random_network
from targetprop.decoders import Inverse

_SMALLEST_POWER = -10
_DECODER_ERROR = 0.1
_PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
_SAMPLES = 16


def differential(
    seed: int = 0, *, width: int = 16, depth: int = 3, points: int = 31, steps: int = 25, alter: Alter = unaltered
) -> Claim:
    """Measure the distance of targets from their linear prediction as β goes to 0."""
    betas = [10 ** (_SMALLEST_POWER * i / (points - 1)) for i in range(points)]
    error = _DECODER_ERROR * orthogonal(width, torch.Generator().manual_seed(seed + 2))
    trials = {name: _trial(seed, width, depth, dtype, error, alter) for name, dtype in _PRECISIONS.items()}
    exact = trials["float64"]
    record = exact.record()
    v = 2 / width * (exact.y - record.output)
    linear = predict(record, v)
    rule = tp.InputSpace(steps=steps, tolerance=0.0)
    iterated = {
        name: sweep_beta(trials[name], betas, rule, linear, torch.finfo(dtype).eps)
        for name, dtype in _PRECISIONS.items()
    }
    eps = iterated["float64"].eps
    once = {rule.name: sweep_beta(exact, betas, rule, linear, eps) for rule in (tp.Difference(), tp.Direct())}
    changes = {
        name: [without_iteration(record, b * v, error, direct=name == "direct")[0] for b in betas] for name in once
    }
    return Claim(
        name="differential",
        statement="Differential: for small β, targets are linear in β",
        prediction="‖Δ_l − βu‖ = ½β²‖J⁻¹D²F[u, u]‖, u = J⁻¹v: slope 2, down to a floor ∝ eps",
        measured=_numbers(iterated["float64"], iterated["float32"]),
        stops=_stops(iterated["float64"], iterated["float32"], once),
        limits=_limits(iterated, once),
        tables=_tables(iterated, once),
        data=_data(iterated, once, {name: _relative(found, betas, linear[0]) for name, found in changes.items()}),
        seeds=(seed,),
    )


def _trial(seed: int, width: int, depth: int, dtype: torch.dtype, error: Tensor, alter: Alter) -> Trial:
    """The same weights and batch in either precision: all of them are exact in float32."""
    generator = torch.Generator().manual_seed(seed + 1)  # weights are drawn from the seed itself
    x, y = (torch.randn(_SAMPLES, width, generator=generator).to(dtype) for _ in range(2))
    network = nn.Sequential(*random_network([width] * (depth + 1), nn.Tanh, seed), nn.Tanh()).float().to(dtype)
    inexact = torch.eye(width, dtype=dtype) + error.to(dtype)

    def off(g: Inverse) -> Inverse:
        return alter(Inverse(lambda y: g(y) @ inexact.T, lambda y, change: g.difference(y, change) @ inexact.T))

    return Trial(network, 0.5 * x, y, alter=off)


def _relative(found: list[Tensor], betas: list[float], linear: Linear) -> list[float]:
    return [rms(change - b * linear.change) / (b * linear.size) for change, b in zip(found, betas, strict=True)]


def _numbers(double: Sweep, single: Sweep) -> tuple[Number, ...]:
    layers = range(len(double.linear))
    slopes = [farthest([sweep.slope(i) for i in layers], 2.0) for sweep in (double, single)]
    floors = [farthest([sweep.against_floor(i) for i in layers], 1.0) for sweep in (double, single)]
    ratio = farthest([double.against_curvature(i) for i in layers], 1.0)
    return (
        Number("slope of the error, float64", (slopes[0],), at_least=1.95, at_most=2.05),
        Number("slope of the error above the floor, float32", (slopes[1],), at_least=1.9, at_most=2.1),
        Number("error / predicted curvature, float64", (ratio,), at_least=0.95, at_most=1.05),
        Number("floor / predicted rounding, float64", (floors[0],), at_least=0.1, at_most=3.0),
        Number("floor / predicted rounding, float32", (floors[1],), at_least=0.1, at_most=3.0),
    )


def _limits(iterated: dict[str, Sweep], once: dict[str, Sweep]) -> tuple[Number, ...]:
    best = {name: sweep.best(0) for name, sweep in iterated.items()}
    last = {name: sweep.relative(0)[-1] for name, sweep in (iterated | once).items()}
    return (
        Number("relative error at β = 1, float64", (iterated["float64"].relative(0)[0],)),
        *(Number(f"β of the smallest relative error, {name}", (beta,)) for name, (beta, _) in best.items()),
        *(Number(f"smallest relative error, {name}", (error,)) for name, (_, error) in best.items()),
        Number("relative error near β = eps, float32", (_near_eps(iterated["float32"]),)),
        Number("relative error at the smallest β, float32", (last["float32"],)),
        Number("relative error at the smallest β, difference inversion", (last["difference"],)),
        Number("absolute error at the smallest β, direct inversion", (once["direct"].errors[0][-1],)),
    )


def _near_eps(sweep: Sweep) -> float:
    return min(zip(sweep.betas, sweep.relative(0), strict=True), key=lambda pair: abs(log10(pair[0] / sweep.eps)))[1]


def _stops(double: Sweep, single: Sweep, once: dict[str, Sweep]) -> str:
    beta, error, lost, smallest, small_error, first, difference, direct = (
        format_number(value)
        for value in (
            *single.best(0),
            _near_eps(single),
            *double.best(0),
            double.relative(0)[0],
            once["difference"].relative(0)[-1],
            once["direct"].errors[0][-1],
        )
    )
    return (
        f"At β = 1 curvature leaves a relative error of {first}. It is smallest near β = √eps, where rounding takes"
        f" over: {error} at β = {beta} in float32 ({lost} near β = eps), {small_error} at {smallest} in float64."
        f" Without iteration the same decoders leave {difference} at any small β by difference inversion, and by"
        f" direct inversion an absolute error of {direct}, whatever β."
    )


def _tables(iterated: dict[str, Sweep], once: dict[str, Sweep]) -> tuple[Table, ...]:
    double = iterated["float64"]
    every = max(1, round((len(double.betas) - 1) / -_SMALLEST_POWER))
    sweeps = iterated | once
    by_beta = [(b, *(s.relative(0)[i] for s in sweeps.values())) for i, b in enumerate(double.betas)]
    by_layer = [
        (i + 1, name, s.slope(i), s.against_floor(i), s.linear[i].curvature, s.linear[i].rounding * s.eps)
        for i in range(len(double.linear))
        for name, s in iterated.items()
    ]
    columns = ("β", "iterated, float64", "iterated, float32", "difference", "direct")
    return (
        Table("Relative error ‖Δ − βu‖ / ‖βu‖ of the lowest layer", columns, tuple(by_beta[::every])),
        Table(
            "Slope and floor by layer",
            ("layer", "precision", "slope", "floor / predicted", "predicted error / β²", "predicted floor"),
            tuple(by_layer),
        ),
    )


def _data(iterated: dict[str, Sweep], once: dict[str, Sweep], predicted: dict[str, list[float]]) -> dict[str, object]:
    linear = iterated["float64"].linear[0]
    return {
        "betas": iterated["float64"].betas,
        "errors": {name: sweep.errors[0] for name, sweep in iterated.items()},
        "floors": {name: linear.rounding * sweep.eps for name, sweep in iterated.items()},
        "curvature": linear.curvature,
        "size": linear.size,
        "relative": {name: sweep.relative(0) for name, sweep in once.items()},
        "relative predicted": predicted,
    }
