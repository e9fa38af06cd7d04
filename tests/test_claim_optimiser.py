"""The contest of optimisers: its identities, its bookkeeping, and targets by wrong inverses."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest

import targetprop as tp
from claim_cases import drawn, negated, number
from targetprop.claims.altered import unaltered
from targetprop.claims.figures.optimiser import draw
from targetprop.claims.measure import race
from targetprop.claims.measure.race import BACKPROP, RULES, Best, contest, train
from targetprop.claims.optimiser import optimiser
from targetprop.diagnostics import DenseInverse

LOSSES = [2.3, 1.0, 0.5, 0.7, 0.4]


def small(alter=unaltered, dampings=(inf, 1.0)):
    return optimiser(widths=(12, 8), steps=20, dampings=dampings, rates=(2.0,), alter=alter)


@pytest.fixture(scope="module")
def claim():
    return small()


def test_nothing_is_promised(claim) -> None:
    assert claim.verdict == "reported"
    assert len(claim.tables[0].rows) == 2 + len(RULES) * 2
    assert "back-propagation" in claim.stops


@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 0.03), ("sgd", 0.1)])
def test_transposes_train_as_back_propagation_does(optimizer: str, rate: float) -> None:
    transposes = tp.Method(decoder=DenseInverse(w=0.0, damping=1.0))
    _, theirs, _ = train(transposes, optimizer, rate, 10, (12, 8), 0, looks=10)
    _, losses, _ = train(tp.method("backprop"), optimizer, rate, 10, (12, 8), 0, looks=10)
    assert theirs == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < losses[0] - 0.05
    damped = tp.Method(decoder=DenseInverse(damping=1.0, relative=True))
    assert train(damped, optimizer, rate, 10, (12, 8), 0, looks=10)[1] != pytest.approx(losses, rel=1e-2)


def test_the_claim_shows_that_identity(claim) -> None:
    for name in ("adam", "sgd"):
        reported = claim.data["backprop"][name]
        if next(row for row in claim.tables[0].rows if row[0] == "gradient, λ = ∞")[1] == name:
            assert claim.data["targets"]["gradient"]["∞"][:10] == pytest.approx(reported[:10], rel=1e-2)


def test_wrong_inverses_train_worse_than_back_propagation(claim) -> None:
    wrong = small(negated, (1.0,))
    assert wrong.verdict == "reported"
    assert wrong.data["backprop"] == claim.data["backprop"]
    for rule in RULES:
        what = f"training loss, {rule}, λ = 1"
        assert number(wrong, what) > 1.5 * number(claim, what)
    for rule in ("gradient", "delta rule"):  # least squares makes up for much of it in the output layer
        assert number(wrong, f"targets, {rule}, best λ") > 1.5 * number(wrong, "back-propagation with Adam")


def test_the_best_rate_is_chosen_on_another_start(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def fake(method, optimizer, rate, steps, widths, seed, looks=race.LOOKS):
        seen.append((optimizer, rate, steps, seed))
        return [0, steps], [2.3, abs(rate - 0.03) + (optimizer == "sgd")], 1.0

    monkeypatch.setattr(race, "train", fake)
    found = contest(7, (12, 8), 40, (inf, 1.0), (1.0, 3.0, 10.0), lambda g: g)
    assert {name: found[rule, name].rate for rule, name in found if rule == BACKPROP} == {"adam": 0.03, "sgd": 0.03}
    assert (found[BACKPROP, "adam"].inside, found[BACKPROP, "sgd"].inside) == (True, False)
    tuned = [run for run in seen if run[3] != 7]
    assert {run[3] for run in tuned} == {1007} and {run[2] for run in seen} == {40}
    assert len(seen) - len(tuned) == len(found) == 2 + 2 * len(RULES)
    assert len(tuned) == 3 * 2 + 6 * 2 * len(RULES)  # as many trials for every contender


def test_a_run_that_diverges_counts_as_infinite() -> None:
    steps, losses, _ = train(tp.method("backprop"), "sgd", 1e38, 20, (12, 8), 0, looks=4)
    assert steps == [0, 5, 10, 15, 20]
    assert losses[0] < 3 and losses[-1] == inf


def test_the_record_survives_divergence() -> None:
    claim = optimiser(widths=(12, 8), steps=8, dampings=(1.0,), rates=(1e38,))
    assert None in claim.data["backprop"]["sgd"]
    assert drawn(draw, claim)


def test_curves_are_read_where_they_were_measured() -> None:
    best = Best("gradient", "1", "adam", 0.1, True, 0.5, [0, 25, 50, 75, 100], LOSSES, 0.0)
    assert [best.at(share) for share in (0.25, 0.6, 1.0)] == [1.0, 0.5, 0.4]
    assert [best.steps_to(loss) for loss in (1.0, 0.6, 0.45, 0.1)] == [25, 50, 100, inf]


def test_to_beat_another_takes_both_starts() -> None:
    best = Best("gradient", "1", "adam", 0.1, True, 0.5, [0, 25, 50, 75, 100], LOSSES, 0.0)
    assert not best.beats(best)
    assert best.beats(replace(best, tuned=0.6, losses=[*LOSSES[:-1], 0.5]))
    assert not best.beats(replace(best, losses=[*LOSSES[:-1], 0.5]))
    assert not best.beats(replace(best, tuned=0.6))


def test_the_figure_draws_from_json(claim) -> None:
    axes = drawn(draw, claim)
    assert len(axes) == 3 and all(panel.get_legend() for panel in axes)
    last = [line for line in axes[2].lines if line.get_linestyle() == "--"]
    assert np.unique(last[0].get_ydata()).tolist() == [claim.data["backprop"]["adam"][-1]]
