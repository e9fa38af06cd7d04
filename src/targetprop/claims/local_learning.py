r"""Approximate inverses can be learned locally from noise (Bengio 2020, arXiv:2007.15139).

Two claims. `local_learning` is the paper's, with its kind of decoder: auto-encoders of layers, denoising ones, which
learn to rebuild a layer's noisy input from its output. Nothing promises that ``g∘f − id`` then contracts.

`damped_inverses` is this project's. A decoder that minimises ``ℓ(1, λ)`` has ``J_f J_g = J_f J_fᵀ (J_f J_fᵀ + λ I)⁻¹``,
so ``‖J_f J_g − I‖ = λ / (s_min² + λ) < 1``: output-space iteration contracts by construction, and so it does with ridge
regression, where the covariance of ``f`` takes the place of ``J_f J_fᵀ``. That is so while the network rests. While it
trains, slopes of tanh differ from sample to sample; `targetprop.WeightInverse` reads them off the pass and learns no
more than the inverse of the map.

On digits, decoders learn alone, with the network at its random start, and together with it. At checkpoints, held-out
samples give the contraction factor on the smaller side of every layer, ``‖J(f∘g̃) − I‖₂`` with
``g̃(u) = x₀ + g(u) − g(y₀)`` or ``‖J(g∘f) − I‖₂``, and ``‖t − f(x)‖ / ‖t − y₀‖`` for small random targets. Decoders are
one affine map each, as ridge regression needs it; "slopes known" and weight inverses multiply by tanh's slopes too.
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
SLOPES, RIDGE, WEIGHT = "damped inverse, slopes known", "ridge regression", "weight inverse"
PROMISED = (PLAIN, SLOPES, RIDGE, WEIGHT)
MOST = 0.95  # of the samples
_WIDTHS, _STEPS = (48, 24), 600
_LEFT = f"residual after {ITERATIONS} steps more"


def local_learning(
    seed: int = 0,
    *,
    widths: Sequence[int] = _WIDTHS,
    steps: int = _STEPS,
    objectives: Mapping[str, Objective] | None = None,
) -> Claim:
    """Measure whether auto-encoders become inverses, by themselves and while the network learns."""
    objectives = _auto_encoders() if objectives is None else objectives
    alone, together, marks = _learn(objectives, widths, steps, seed)
    names = list(objectives)
    return Claim(
        name="local-learning",
        statement="Auto-encoders of layers learn inverses locally, while everything trains",
        prediction="none by mathematics; the paper builds on Lip(g∘f − id) < 1",
        measured=(*_contracts("alone", alone, names), *_contracts("together", together, names)),
        stops=_unkept(alone, together, names),
        limits=(
            *(Number(f"then with weights at rest, {name}", (_worst(together[name], at=-1),)) for name in names),
            *(Number(f"together, {name}, {_LEFT}", (_worst(together[name], "last"),)) for name in names),
        ),
        tables=(_table(alone, together, widths),),
        data={"steps": marks, "alone": alone, "together": together, "iterations": ITERATIONS},
        should_hold=False,
        seeds=(seed,),
    )


def damped_inverses(
    seed: int = 0,
    *,
    widths: Sequence[int] = _WIDTHS,
    steps: int = _STEPS,
    objectives: Mapping[str, Objective] | None = None,
    promised: Collection[str] = PROMISED,
    promised_together: Collection[str] = (WEIGHT,),
) -> Claim:
    """Measure how far damped decoders become inverses, by themselves and while the network learns."""
    objectives = _objectives() if objectives is None else objectives
    bounded = [name for name in objectives if name in promised]
    if not bounded:
        raise ValueError(f"none of {', '.join(objectives)} is promised to contract; name one of them in promised")
    alone, together, marks = _learn(objectives, widths, steps, seed)
    square = learn(objectives[bounded[0]], (widths[0], *widths), _marks(steps), seed)
    always = [name for name in objectives if name in promised_together]
    limits = (
        Number("decoders alone, a square layer: median contraction factor", (square["factor"][-1][0],)),
        *(Number(f"everything together, {name}: contraction factor", (_worst(together[name]),)) for name in objectives),
        *(Number(f"then with weights at rest, {name}", (_worst(together[name], at=-1),)) for name in bounded),
    )
    return Claim(
        name="damped-inverses",
        statement="Damped inverses learned locally contract, with known slopes also while everything trains",
        prediction="‖J_f J_g − I‖ = λ / (s_min² + λ) < 1 at the minimum of ℓ(1, λ); iterating takes the residual to 0",
        measured=(*_measured(alone, together, bounded), *_contracts("together", together, always)),
        stops=_stops(alone, together, bounded, square["factor"][-1][0]),
        limits=limits,
        tables=(_table(alone, together, widths),),
        data={"steps": marks, "alone": alone, "together": together, "iterations": ITERATIONS},
        seeds=(seed,),
    )


def _auto_encoders() -> dict[str, Objective]:
    return {
        "denoising": tp.Denoising(noise=0.5, lr=5e-3),
        "denoising, Ωσ(y)": tp.Denoising(noise=0.1, activation="forward", lr=5e-3),
    }


def _objectives() -> dict[str, Objective]:
    damped: dict[str, Any] = {"w": 1.0, "damping": 0.1, "relative": True, "lr": 5e-3}
    return {
        PLAIN: tp.DifferenceReconstruction(**damped),
        SLOPES: tp.DifferenceReconstruction(**damped, activation="transpose"),
        RIDGE: tp.Ridge(),
        WEIGHT: tp.WeightInverse(damping=0.1),
        "transpose": tp.DifferenceReconstruction(w=0.0, damping=1.0, lr=5e-3),
        "global reconstruction": tp.GlobalReconstruction(lr=5e-3),
        EXACT: DenseInverse(w=1.0, damping=0.1, relative=True),
    }


def _marks(steps: int) -> list[int]:
    return [round(steps * share) for share in CHECKPOINTS]


def _learn(
    objectives: Mapping[str, Objective], widths: Sequence[int], steps: int, seed: int
) -> tuple[dict[str, Series], dict[str, Series], list[int]]:
    """Learn alone and together; the last of the steps at which it was looked is at rest."""
    marks, rest = _marks(steps), round(steps * REST)
    alone = {name: learn(objective, widths, marks, seed) for name, objective in objectives.items()}
    together = {name: learn(objective, widths, marks, seed, rest) for name, objective in objectives.items()}
    return alone, together, [*marks, steps + rest]


def _contracts(when: str, found: dict[str, Series], names: Sequence[str]) -> list[Number]:
    """Ask of decoders by name, in every layer, for a factor below 1 in the middle and at nearly all samples."""
    numbers = []
    for name in names:
        factor, share = _worst(found[name]), _worst(found[name], "share")
        numbers.append(Number(f"{when}, {name}: largest median contraction factor", (factor,), at_most=1.0))
        numbers.append(Number(f"{when}, {name}: smallest share with a factor < 1", (share,), at_least=MOST))
    return numbers


def _unkept(alone: dict[str, Series], together: dict[str, Series], names: Sequence[str]) -> str:
    def ends(found: dict[str, Series], at: int = len(CHECKPOINTS) - 1) -> str:
        return ", ".join(f"{name} {format_number(_worst(found[name], at=at))}" for name in names)

    left = ", ".join(f"{name} {_worst(together[name], 'last'):.0%}" for name in names)
    return (
        f"While the network rests: {ends(alone)}. While it trains: {ends(together)}; then with weights at rest:"
        f" {ends(together, at=-1)}. {ITERATIONS} steps of iteration leave of what is asked: {left}."
    )


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
    told = [name for name in (SLOPES, WEIGHT) if name in together and _worst(together[name]) < 1]
    if stuck and told:
        ends = ", ".join(f"{name} {format_number(_worst(together[name]))}" for name in told)
        text += f" Decoders told each sample's slopes of tanh contract: {ends}."
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
