r"""One family of decoders and ``K`` steps lead from back-propagation to Gauss-Newton: the (w, λ) bridge.

The difference reconstruction loss ``ℓ(w, λ) = [−2 ε·q + w‖q‖² + λ‖p‖²] / s²``, with ``q = g(f(h+ε)) − g(f(h))`` and
``p = g(h_l+η) − g(h_l)``, is least at ``J_g = J_fᵀ (w J_f J_fᵀ + λI)⁻¹``: ``(1, 0)`` is the pseudo-inverse, ``(0, 1)``
the transpose. ``K`` input-space steps with a damped decoder are iterated Tikhonov regularisation,
``Δ_{l-1} = (I − (I − J_g J_f)^K) J_f⁺ Δ_l``: back-propagation's direction for large ``λ`` and ``K = 1``, Gauss-Newton's
for small ``λ`` or large ``K``, and for ``K ≫ 1`` a function of ``λ / K``.

Each end has its own local update: ``−Δ aᵀ`` gives back-propagation's gradient, ``−Δ aᵀ / ‖a‖²`` the block-diagonal
Gauss-Newton step ``J_θ⁺ Δ_L``, averaged over the batch. A damped decoder shrinks what it decodes by about ``λ``, so
angles are between updates with each layer scaled to norm 1, without the output layer, which is the same everywhere.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from torch import nn

import targetprop as tp
from targetprop.claims.altered import Alter, unaltered
from targetprop.claims.claim import Claim, Number, Table, format_number
from targetprop.claims.measure.damping_grid import Oracle, angle, damped_method, deviation
from targetprop.claims.measure.learned_family import SHAPES, learn_pair
from targetprop.claims.measure.trial import Trial, random_trial
from targetprop.claims.networks import leaky

_PAIRS = ((1.0, 0.0), (1.0, 0.1), (1.0, 1.0), (0.0, 1.0))
_CURVED = ((1.0, 0.1), (0.0, 1.0))
_DAMPINGS = tuple(10.0**k for k in range(-4, 5))
_STEPS = tuple(2**k for k in range(9))
_FAINT = 1e-8
_TRANSPOSE = 100.0  # with so much damping, decoders are transposes but for their scale
_SAMPLES = 8
_SPREAD = 10.0


def bridge(
    seed: int = 0,
    *,
    width: int = 10,
    depth: int = 4,
    networks: int = 5,
    updates: int = 400,
    dampings: Sequence[float] = _DAMPINGS,
    steps: Sequence[int] = _STEPS,
    alter: Alter = unaltered,
) -> Claim:
    """Measure learned decoders against their closed form, and angles of updates over a grid of damping and steps."""
    learned = [learn_pair(w, damping, seed, alter, updates=updates) for w, damping in _PAIRS]
    curved = [learn_pair(*pair, seed, alter, updates=updates, activation=nn.Tanh) for pair in _CURVED]
    trial = random_trial([width] * (depth + 1), leaky, seed, _SAMPLES, spread=_SPREAD, alter=alter)
    grid = _grid(trial, dampings, steps)
    limits = (
        *_inexact(seed, width, depth, networks, dampings[0], steps[-1], alter),
        Number("lowest layer, ‖∇‖ / ‖∇_BP‖ at the largest λ, K = 1", (grid["size"],)),
        *(Number(f"tanh layers, learned decoder {pair.name}, error", (max(pair.errors[:2]),)) for pair in curved),
    )
    error, rows = max(max(pair.errors) for pair in learned), tuple((pair.name, *pair.errors) for pair in learned)
    return Claim(
        name="bridge",
        statement="Damping λ and steps K lead from back-propagation to Gauss-Newton",
        prediction="learned J_g = J_fᵀ(wJ_fJ_fᵀ + λI)⁻¹; after K steps Δ_{l−1} = (I − (I − J_gJ_f)ᴷ) J_f⁺ Δ_l",
        measured=(
            Number("learned decoders, largest ‖J_g − J_g*‖ / ‖J_g*‖", (error,), at_most=0.03),
            Number("grid, largest ‖∇ − predicted‖ / ‖predicted‖", (grid["deviation"],), at_most=1e-4),
            Number("angle to back-propagation at the largest λ, K = 1 (°)", (grid["backprop"][0][-1],), at_most=1.0),
            Number("angle to Gauss-Newton at the smallest λ, most steps (°)", (grid["newton"][-1][0],), at_most=1.0),
            Number("angle to back-propagation at the Gauss-Newton end (°)", (grid["backprop"][-1][0],)),
            Number("angle to Gauss-Newton at the back-propagation end (°)", (grid["newton"][0][-1],)),
        ),
        stops=_stops(limits),
        limits=limits,
        tables=(
            Table("Learned decoders, ‖J_g − J_g*‖ / ‖J_g*‖", ("(w, λ)", *SHAPES), rows),
            _table("Gradient update, angle to back-propagation (°)", grid, "backprop"),
            _table("Delta rule, angle to Gauss-Newton (°)", grid, "newton"),
        ),
        data={"learned": [pair.curve for pair in learned], "grid": grid},
        seeds=(seed,),
    )


def _grid(trial: Trial, dampings: Sequence[float], steps: Sequence[int]) -> dict[str, Any]:
    """Measure both updates in every cell, a row per ``K`` and a column per ``λ``."""
    oracle, gradient, worst, size = Oracle(trial), trial.backprop(), 0.0, 0.0
    newton = oracle.gauss_newton()
    angles: dict[str, list[list[float]]] = {"backprop": [], "newton": []}
    for k in steps:
        rows: dict[str, list[float]] = {name: [] for name in angles}
        for damping in dampings:
            changes = oracle.changes(damping, k)
            for name, update, end in (("backprop", tp.Gradient(), gradient), ("newton", tp.DeltaRule(), newton)):
                found = trial.updates(damped_method(damping, k, update))
                worst = max(worst, deviation(found, oracle.updates(changes, delta_rule=name == "newton")))
                rows[name].append(angle(found, end))
                if (name, k, damping) == ("backprop", steps[0], dampings[-1]):
                    size = float(found[0].norm() / gradient[0].norm())
        for name, row in rows.items():
            angles[name].append(row)
    return {"dampings": list(dampings), "steps": list(steps), **angles, "deviation": worst, "size": size}


def _median_angle(trials: Sequence[Trial], method: tp.Method) -> float:
    """Take the median over networks of the angle to Gauss-Newton."""
    return median(angle(trial.updates(method), Oracle(trial).gauss_newton()) for trial in trials)


def _trials(
    widths: Sequence[int], activation: Callable[[], nn.Module], seed: int, networks: int, alter: Alter
) -> list[Trial]:
    seeds = (1000 * seed + i for i in range(networks))
    return [random_trial(widths, activation, s, _SAMPLES, spread=_SPREAD, alter=alter) for s in seeds]


def _inexact(
    seed: int, width: int, depth: int, networks: int, damping: float, steps: int, alter: Alter
) -> tuple[Number, ...]:
    """Layers that shrink, layer by layer and inverted as one, and layers that saturate."""
    widths = [round(width + (2 - width) * layer / depth) for layer in range(depth + 1)]
    shrinking = _trials(widths, leaky, seed, networks, alter)
    saturated = _trials([width] * (depth + 1), nn.Tanh, seed, networks, alter)
    anderson = tp.InputSpace(steps=50, tolerance=0.0, anderson=10)
    layerwise, faint = (damped_method(d, steps, tp.DeltaRule()) for d in (damping, _FAINT))
    whole = damped_method(_TRANSPOSE, 1, tp.DeltaRule(), inversion=anderson, propagation="composite")
    less = format_number(_FAINT)
    return (
        Number("shrinking layers, angle to Gauss-Newton (°)", (_median_angle(shrinking, layerwise),)),
        Number("shrinking layers inverted as one, near transposes (°)", (_median_angle(shrinking, whole),)),
        Number("tanh layers, angle to Gauss-Newton (°)", (_median_angle(saturated, layerwise),)),
        Number(f"tanh layers, λ = {less}, angle to Gauss-Newton (°)", (_median_angle(saturated, faint),)),
    )


def _stops(limits: tuple[Number, ...]) -> str:
    layerwise, whole, tanh, faint, size, shared, transpose = (number.values[0] for number in limits)
    return (
        f"Layers that shrink stay {layerwise:.0f}° from Gauss-Newton, inverted as one from near transposes"
        f" {whole:.1f}°. Tanh layers, which saturate, come to {tanh:.1f}°, to {faint:.1f}° with less damping. At the"
        f" other end only the direction is back-propagation's: the lowest layer's update is {format_number(size)} times"
        f" as large. Behind tanh, a decoder that all samples share errs by {shared:.0%} at (w, λ) = (1, 0.1), by"
        f" {transpose:.0%} at (0, 1)."
    )


def _table(title: str, grid: dict[str, Any], name: str) -> Table:
    rows = tuple((k, *row) for k, row in zip(grid["steps"], grid[name], strict=True))
    return Table(title, ("K", *(f"λ = {damping:g}" for damping in grid["dampings"])), rows)
