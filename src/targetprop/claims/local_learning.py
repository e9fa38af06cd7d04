r"""Approximate inverses can be learned locally from noise (Bengio 2020, arXiv:2007.15139).

A decoder that minimises ``ℓ(1, λ)`` has ``J_f J_g = J_f J_fᵀ (J_f J_fᵀ + λ I)⁻¹``, so ``‖J_f J_g − I‖ =
λ / (s_min² + λ) < 1``: output-space iteration contracts by construction, and so it does with ridge regression, where
the covariance of ``f`` takes the place of ``J_f J_fᵀ``.

On digits, decoders learn alone, with the network at its random start, and together with it. At checkpoints, held-out
samples give the contraction factor on the smaller side of every layer, ``‖J(f∘g̃) − I‖₂`` with
``g̃(u) = x₀ + g(u) − g(y₀)`` or ``‖J(g∘f) − I‖₂``, and ``‖t − f(x)‖ / ‖t − y₀‖`` for small random targets. Decoders are
one affine map each, as ridge regression needs it; only "slopes known" multiplies by tanh's slopes too.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import targetprop as tp
from targetprop.claims.claim import Claim, Number, Table, format_number
from targetprop.claims.measure.learning import ITERATIONS, SAMPLES, Series, learn
from targetprop.decoders import Objective
from targetprop.diagnostics import DenseInverse

REST = 0.25  # steps that the decoders train on with the weights at rest, as a share of those before
CHECKPOINTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
EXACT, PLAIN = "exact damped inverse", "damped inverse"
SLOPES, RIDGE = "damped inverse, slopes known", "ridge regression"
PROMISED = (PLAIN, SLOPES, RIDGE)


def local_learning(
    seed: int = 0,
    *,
    widths: Sequence[int] = (48, 24),
    steps: int = 600,
    objectives: Mapping[str, Objective] | None = None,
    promised: Collection[str] = PROMISED,
) -> Claim:
    """Measure how far decoders become inverses, by themselves and while the network learns."""
    objectives = _objectives() if objectives is None else objectives
    marks, rest = [round(steps * share) for share in CHECKPOINTS], round(steps * REST)
    bounded = [name for name in objectives if name in promised]
    if not bounded:
        raise ValueError(f"none of {', '.join(objectives)} is promised to contract; name one of them in promised")
    alone = {name: learn(objective, widths, marks, seed) for name, objective in objectives.items()}
    together = {name: learn(objective, widths, marks, seed, rest) for name, objective in objectives.items()}
    square = learn(objectives[bounded[0]], (widths[0], *widths), marks, seed)
    limits = (
        Number("decoders alone, a square layer: median contraction factor", (square["factor"][-1][0],)),
        *(Number(f"everything together, {name}: contraction factor", (_worst(together[name]),)) for name in objectives),
        *(Number(f"then with weights at rest, {name}", (_worst(together[name], at=-1),)) for name in bounded),
    )
    return Claim(
        name="local-learning",
        statement="Approximate inverses can be learned locally: from a layer's own input, output and noise",
        prediction="‖J_f J_g − I‖ = λ / (s_min² + λ) < 1 at the minimum of ℓ(1, λ); iterating takes the residual to 0",
        measured=_measured(alone, together, bounded),
        stops=_stops(alone, together, bounded, square["factor"][-1][0]),
        limits=limits,
        tables=(_table(alone, together, widths),),
        data={"steps": [*marks, steps + rest], "alone": alone, "together": together, "iterations": ITERATIONS},
        seeds=(seed,),
    )


def _objectives() -> dict[str, Objective]:
    damped: dict[str, Any] = {"w": 1.0, "damping": 0.1, "relative": True, "lr": 5e-3}
    return {
        PLAIN: tp.DifferenceReconstruction(**damped),
        SLOPES: tp.DifferenceReconstruction(**damped, activation="transpose"),
        RIDGE: tp.Ridge(),
        "denoising": tp.Denoising(noise=0.5, lr=5e-3),
        "transpose": tp.DifferenceReconstruction(w=0.0, damping=1.0, lr=5e-3),
        "global reconstruction": tp.GlobalReconstruction(lr=5e-3),
        EXACT: DenseInverse(w=1.0, damping=0.1, relative=True),
    }


def _worst(series: Series, key: str = "factor", at: int = len(CHECKPOINTS) - 1) -> float:
    return (min if key == "share" else max)(series[key][at])


def _measured(alone: dict[str, Series], together: dict[str, Series], bounded: list[str]) -> tuple[Number, ...]:
    end = [alone[name] for name in bounded]
    moving = [together[name] for name in bounded]
    factor, share = max(map(_worst, end)), min(_worst(series, "share") for series in end)
    left = max(_worst(series, "last") / _worst(series, "last", at=0) for series in end)
    return (
        Number("decoders alone, largest median contraction factor", (factor,), at_most=0.9),
        Number("decoders alone, smallest share of samples with a factor < 1", (share,), at_least=0.98),
        Number(f"decoders alone, residual after {ITERATIONS} steps / the untrained decoder's", (left,), at_most=0.1),
        Number("everything together, smallest median factor", (min(map(_worst, moving)),)),
        Number("everything together, largest median factor", (max(map(_worst, moving)),)),
    )


def _stops(alone: dict[str, Series], together: dict[str, Series], bounded: list[str], square: float) -> str:
    def without(found: dict[str, Series]) -> str:
        ends = {name: _worst(series) for name, series in found.items() if name != EXACT}
        return ", ".join(f"{name} {format_number(value)}" for name, value in ends.items() if value >= 1) or "none"

    text = (
        f"Decoders alone that do not contract: {without(alone)}; a square layer, whose singular values reach down to 0,"
        f" ends at {format_number(square)}. Everything together: {without(together)}."
    )
    stuck = [name for name in bounded if _worst(together[name]) >= 1 and _worst(together[name], at=-1) >= 1]
    if stuck:
        rest = " and ".join(f"{name} at {format_number(_worst(together[name], at=-1))}" for name in stuck)
        text += f" Lag is not why: with the weights at rest, {rest}."
    if stuck and SLOPES in together and _worst(together[SLOPES]) < 1:
        text += f" Decoders told each sample's slopes of tanh contract, at {format_number(_worst(together[SLOPES]))}."
    return text


def _table(alone: dict[str, Series], together: dict[str, Series], widths: Sequence[int]) -> Table:
    sizes, last = [*widths, 10], len(CHECKPOINTS) - 1
    rows = [
        (name, f"{sizes[i]} → {sizes[i + 1]}", *(series[key][last][i] for key in ("factor", "first", "last")))
        + tuple(together[name][key][last][i] for key in ("factor", "first", "last"))
        for name, series in alone.items()
        for i in range(len(widths))
    ]
    regimes = [f"{what}, {regime}" for regime in ("alone", "together") for what in ("factor", "residual 1", "residual")]
    title = (
        f"Medians over {SAMPLES} held-out samples at the end: contraction factor, relative residual after difference"
        f" inversion and after {ITERATIONS} steps more"
    )
    return Table(title, ("objective", "layer", *regimes), tuple(rows))
