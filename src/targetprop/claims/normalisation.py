r"""Influence normalisation gives influential layers larger changes, as gradient descent does (Bengio 2020).

Exact inverses give ``Δ_l = J_{l→L}⁻¹ Δ_L``: the more a layer influences the output, the smaller its change. The remedy
of arXiv:2007.15139 is ``Δ_l ← Δ_l ‖Δ_L‖² / ‖Δ_l‖²``, per sample. As ``⟨J⁻¹v, Jᵀv⟩ = ‖v‖²``, this is the gradient's
change, ``Jᵀ Δ_L``, projected on ``J⁻¹ Δ_L``; where ``J`` is a gain times an orthogonal matrix, it *is* the gradient's.

Measured on layers scaled up and down: ``.grad`` where it should be back-propagation's, that projection, rank
correlation over layers of the sizes of changes, and how far all this holds where singular values spread.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from targetprop.claims.altered import Alter, unaltered
from targetprop.claims.claim import Claim, Number, Table
from targetprop.claims.measure.size_comparison import (
    BACKPROP,
    KINDS,
    NORMALISED,
    PLAIN,
    Comparison,
    Rule,
    compare,
    rank_correlation,
    scaled_trial,
)  # fmt: skip
from targetprop.claims.measure.trial import Trial
from targetprop.claims.networks import leaky

_EXACT, _DAMPED = Rule("exact"), Rule("λ = 0.1", 0.1)
_STRONG, _ITERATED = Rule("λ = 1", 1.0), Rule("λ = 1, 5 steps", 1.0, 5)
_RULES = (_EXACT, _DAMPED, _STRONG, _ITERATED)


def normalisation(
    seed: int = 0,
    *,
    width: int = 16,
    depth: int = 8,
    networks: int = 12,
    spreads: Sequence[float] = (1, 2, 5, 10, 30, 100, 1000),
    alter: Alter = unaltered,
) -> Claim:
    """Measure what influence normalisation does to the size of each layer's change."""
    orthogonal, scalar = (
        _error(scaled_trial(*size, 1000 * seed, alter)) for size in ((width, depth, nn.Identity), (1, depth, nn.Tanh))
    )
    trials = {
        spread: [scaled_trial(width, depth, leaky, 1000 * seed + i, alter, spread) for i in range(networks)]
        for spread in spreads
    }
    compared = [compare(trial, _EXACT) for trial in trials[spreads[0]]]
    rows = [row for spread in spreads for row in _rows(spread, trials[spread])]
    return Claim(
        name="normalisation",
        statement="Influence normalisation gives influential layers larger changes, as gradient descent does",
        prediction="normalised, Δ_l is the gradient's projection on Δ_l, and the gradient itself where layers are gains"
        " times orthogonal matrices; not normalised, the order of activation changes is reversed",
        measured=(
            Number("orthogonal layers, ‖∇ − ∇_BP‖ / ‖∇_BP‖", (orthogonal,), at_most=1e-9),
            Number("scalar chain, ‖∇ − ∇_BP‖ / ‖∇_BP‖", (scalar,), at_most=1e-9),
            Number("largest deviation from the projection", (max(c.deviation() for c in compared),), at_most=1e-8),
            _correlation("activations", NORMALISED, compared, at_least=0.8),
            _correlation("activations", PLAIN, compared, at_most=-0.8),
            _correlation("weights", NORMALISED, compared, at_least=0.8),
            _correlation("weights", PLAIN, compared),
        ),
        stops=_stops(rows),
        limits=_limits(rows),
        tables=(
            _table("Rank correlation over layers of ‖∇_l‖ with back-propagation's", "rank", rows),
            _table("Cosine of the whole update to back-propagation's", "cosine", rows),
        ),
        data=_data(compared, rows),
        seeds=(seed,),
    )


def _error(trial: Trial) -> float:
    found, expected = torch.cat(trial.updates(_EXACT.method(normalise=True))), torch.cat(trial.backprop())
    return float((found - expected).norm() / expected.norm())


def _correlation(of: str, kind: str, compared: list[Comparison], **bounds: float) -> Number:
    value = median(rank_correlation(c.sizes(of, kind), c.sizes(of, BACKPROP)) for c in compared)
    return Number(f"{of}, {kind}: rank correlation of sizes with back-propagation's", (value,), **bounds)


def _rows(spread: float, trials: list[Trial]) -> list[dict[str, Any]]:
    """Take medians over networks of the rank correlation of weight changes, and of the cosine, for every rule."""
    expected, rows = [trial.backprop() for trial in trials], []
    for rule in _RULES:
        pairs = [(t.updates(rule.method(normalise=True)), b) for t, b in zip(trials, expected, strict=True)]
        ranks = [rank_correlation([float(v.norm()) for v in a], [float(v.norm()) for v in b]) for a, b in pairs]
        cosines = [float(cosine_similarity(torch.cat(a), torch.cat(b), dim=0)) for a, b in pairs]
        rows.append({"spread": spread, "rule": rule.name, "rank": median(ranks), "cosine": median(cosines)})
    return rows


def _at(rows: list[dict[str, Any]], rule: Rule, place: int) -> dict[str, Any]:
    return [row for row in rows if row["rule"] == rule.name][place]


def _stops(rows: list[dict[str, Any]]) -> str:
    ends = zip(_RULES, (-1, -1, 0, 0), strict=True)
    exact, damped, strong, iterated = (_at(rows, rule, place) for rule, place in ends)
    return (
        f"Ill-conditioned layers make the projection short. With singular values spread {exact['spread']:g}-fold, the"
        f" rank correlation of weight changes is {exact['rank']:.2f}, or {damped['rank']:.2f} with λ = 0.1, and the"
        f" cosine to back-propagation {exact['cosine']:.2f}, or {damped['cosine']:.2f}: damping helps the order of"
        " sizes, hardly the direction. Strong damping in one step shortens changes layer after layer, which passes for"
        f" influence: rank correlation {strong['rank']:.2f} with λ = 1 and no spread; five steps give"
        f" {iterated['rank']:.2f}."
    )


def _limits(rows: list[dict[str, Any]]) -> tuple[Number, ...]:
    wide = [(quantity, rule, -1) for quantity in ("rank", "cosine") for rule in (_EXACT, _DAMPED)]
    names = {"rank": "rank correlation of weight changes", "cosine": "cosine to back-propagation"}
    return tuple(
        Number(f"{names[quantity]}, {'largest' if at else 'no'} spread, {rule.name}", (_at(rows, rule, at)[quantity],))
        for quantity, rule, at in (*wide, ("rank", _STRONG, 0), ("rank", _ITERATED, 0))
    )


def _table(title: str, quantity: str, rows: list[dict[str, Any]]) -> Table:
    spreads = dict.fromkeys(row["spread"] for row in rows)
    lines = tuple((spread, *(row[quantity] for row in rows if row["spread"] == spread)) for spread in spreads)
    columns = ("spread of singular values", *(rule.name for rule in _RULES))
    return Table(f"{title}, median over networks; λ in units of the mean diagonal of JJᵀ", columns, lines)


def _data(compared: list[Comparison], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Keep one network's activation changes, all networks' weight changes relative to their mean, and the sweep."""
    kinds, example = KINDS, compared[0]
    relative: dict[str, list[float]] = {kind: [] for kind in kinds}
    for comparison in compared:
        for kind in kinds:
            sizes = comparison.sizes("weights", kind)
            relative[kind] += [size * len(sizes) / sum(sizes) for size in sizes]
    projections = [float(predicted.square().mean().sqrt()) for predicted in example.projections()]
    return {
        "example": {**{kind: example.sizes("activations", kind) for kind in kinds}, "projection": projections},
        "relative": relative,
        "sweep": {rule.name: [row for row in rows if row["rule"] == rule.name] for rule in _RULES},
    }
