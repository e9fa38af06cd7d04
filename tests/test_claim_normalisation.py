"""Influence normalisation: sizes by hand and by dense Jacobians, and inverses broken on purpose."""

from itertools import count
from typing import Any

import pytest
import torch
from torch import nn

from cases import relative
from claim_cases import drawn, names, scaled, turn
from targetprop.claims.altered import unaltered
from targetprop.claims.claim import Claim
from targetprop.claims.figures.normalisation import draw
from targetprop.claims.measure.size_comparison import BETA, Rule, rank_correlation, scaled_trial
from targetprop.claims.normalisation import normalisation
from targetprop.decoders import Inverse
from targetprop.diagnostics import output_jacobians

SMALL: dict[str, Any] = dict(width=6, depth=6, networks=3, spreads=(1, 100))


@pytest.fixture(scope="module")
def claim() -> Claim:
    return normalisation(**SMALL)


def test_the_claim_holds_and_reports_where_it_stops(claim: Claim) -> None:
    assert claim.verdict == "holds"
    assert [number.values[0] < 1e-13 for number in claim.measured[:3]] == [True] * 3
    assert "spread 100-fold" in claim.stops
    exact, _, cosine, *_ = (number.values[0] for number in claim.limits)
    rows = {row["spread"]: row for row in claim.data["sweep"]["exact"]}
    assert (exact, cosine) == (rows[100]["rank"], rows[100]["cosine"])
    assert rows[100]["rank"] < rows[1]["rank"] and rows[100]["cosine"] < rows[1]["cosine"]


GAINS = count(1)
BROKEN = {
    "a little too large": scaled(1.001),
    "a gain of its own for every layer": lambda g: scaled((-1.0) ** next(GAINS))(g),
    "rotated": lambda g: Inverse(g.decode, lambda y, change: turn(g.difference(y, change))),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_inverses_fail(name: str) -> None:
    claim = normalisation(**{**SMALL, "networks": 1}, alter=BROKEN[name])
    assert claim.verdict == "fails"
    assert not claim.measured[0].holds


def test_changes_follow_dense_jacobians() -> None:
    trial = scaled_trial(5, 4, lambda: nn.LeakyReLU(0.5), 3, unaltered, spread=4.0)
    record = trial.record()
    delta = -2 / 5 * (record.output - trial.y)
    plain, normalised = ([d / BETA for d in trial.changes(Rule("exact").method(normalise=on))] for on in (False, True))
    for J, a, b, gradient in zip(output_jacobians(record), plain, normalised, trial.backprop_changes(), strict=True):
        inverse = torch.linalg.solve(J, delta)
        downhill = (J.mT @ delta.unsqueeze(2)).squeeze(2)
        unit = inverse / inverse.norm(dim=1, keepdim=True)
        assert relative(a, inverse) < 1e-12
        assert relative(gradient, downhill) < 1e-12
        assert relative(b, unit * (unit * downhill).sum(1, keepdim=True)) < 1e-12  # the gradient, projected


def test_gains_differ_by_layer_and_cancel() -> None:
    trial = scaled_trial(4, 5, nn.Identity, 0, unaltered)
    gains = [float(p.detach().norm() / 2) for p in trial.network.parameters() if p.dim() == 2]
    assert sorted(gains) == pytest.approx([0.25, 0.5, 1.0, 2.0, 4.0])


def test_rank_correlation_by_hand() -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(1 - 6 * 4 / (4 * 15))


def test_the_figure_draws_from_the_saved_record(claim: Claim) -> None:
    axes = drawn(draw, claim)
    assert len(axes) == 3
    for panel, prediction in zip(axes, ("back-propagation", "equal", "same order as back-propagation"), strict=True):
        assert prediction in names(panel)
