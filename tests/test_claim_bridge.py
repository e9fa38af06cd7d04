"""The (w, λ) bridge: learned decoders, predicted updates, angles by hand, and inverses broken on purpose."""

from importlib import import_module
from math import pi
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import AxesImage
from torch import nn

import targetprop as tp
from cases import DTYPE, rand, relative
from claim_cases import drawn, names, rotated, scaled
from targetprop.claims.altered import unaltered
from targetprop.claims.bridge import bridge
from targetprop.claims.claim import Claim
from targetprop.claims.figures.bridge import draw
from targetprop.claims.measure import learned_family
from targetprop.claims.measure.damping_grid import Oracle, angle, damped_method, deviation
from targetprop.claims.measure.learned_family import learn_pair
from targetprop.claims.measure.trial import random_trial
from targetprop.diagnostics import backprop_gradients

claims_bridge = import_module("targetprop.claims.bridge")
SMALL: dict[str, Any] = dict(width=5, networks=1, updates=120, dampings=(1e-4, 1.0, 1e4), steps=(1, 4, 64))


@pytest.fixture(autouse=True, scope="module")
def few_samples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned_family, "_SAMPLES", 512)
        yield


@pytest.fixture(scope="module")
def claim(few_samples) -> Claim:
    return bridge(**SMALL)


def test_the_claim_holds(claim: Claim) -> None:
    assert claim.verdict == "holds"
    learned, predicted, backprop, newton, *across = (number.values[0] for number in claim.measured)
    assert learned < 0.03 and predicted < 1e-4 and backprop < 0.1 and newton < 0.1
    assert min(across) > 20  # the ends are far from each other
    assert "Layers that shrink stay" in claim.stops


def test_damping_leads_to_back_propagation_and_steps_to_gauss_newton(claim: Claim) -> None:
    backprop, newton = (torch.tensor(claim.data["grid"][name]) for name in ("backprop", "newton"))  # K × λ
    assert (backprop.diff(dim=1) < 1e-3).all() and (backprop.diff(dim=0) > -1e-3).all()
    assert (newton.diff(dim=1) > -1e-3).all() and (newton.diff(dim=0) < 1e-3).all()


@pytest.mark.parametrize("alter", [scaled(1.05), rotated], ids=["too large", "rotated"])
def test_broken_inverses_fail(alter, monkeypatch) -> None:
    monkeypatch.setattr(claims_bridge, "_PAIRS", ((1.0, 0.1),))
    claim = bridge(**{**SMALL, "dampings": (1e-4, 1e4), "steps": (1, 4)}, alter=alter)
    assert claim.verdict == "fails"
    assert [number.holds for number in claim.measured[:2]] == [False, False]


def test_a_wrong_damping_is_seen() -> None:
    trial = random_trial([4] * 4, nn.Tanh, 1, 3, spread=2.0)
    found = trial.updates(damped_method(0.5, 2, tp.Gradient()))
    oracle = Oracle(trial)
    assert deviation(found, oracle.updates(oracle.changes(0.5, 2), delta_rule=False)) < 1e-6
    for damping, steps in ((0.51, 2), (0.5, 3)):
        assert deviation(found, oracle.updates(oracle.changes(damping, steps), delta_rule=False)) > 1e-3


def test_the_ends_of_the_prediction_are_back_propagation_and_gauss_newton() -> None:
    trial = random_trial([4] * 4, nn.Tanh, 2, 3, spread=2.0)
    oracle = Oracle(trial)
    large, small = 1e9, 1e-12
    gradient, dense = trial.backprop(), backprop_gradients(oracle.record, -oracle.output / 3)
    assert all(relative(a, b) < 1e-12 for a, b in zip(gradient, dense, strict=True))
    assert angle(oracle.updates(oracle.changes(large, 1), delta_rule=False), gradient) < 1e-5
    steps = oracle.updates(oracle.changes(small, 1), delta_rule=True)
    assert all(relative(a, b) < 1e-9 for a, b in zip(steps, oracle.gauss_newton(), strict=True))


@pytest.mark.parametrize(("w", "damping"), [(1.0, 0.5), (0.0, 1.0)])
def test_learned_gains_follow_the_closed_form(w: float, damping: float) -> None:
    pair = learn_pair(w, damping, 1, unaltered, updates=120)
    sigma, gains = (torch.tensor(values, dtype=DTYPE) for values in (pair.singular, pair.gains))
    assert relative(gains, sigma / (w * sigma**2 + damping)) < 0.03
    assert max(learn_pair(w, damping, 1, unaltered, updates=1).errors) > 0.5  # it is learned


def test_angles_by_hand() -> None:
    along, across, output = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 5.0]), rand(3)
    assert angle([along, output], [3 * along, -output]) == 0
    assert angle([along, output], [across, output]) == pytest.approx(90)
    assert angle([along, output], [-along, output]) == pytest.approx(180)
    assert angle([0 * along, output], [along, output]) == pytest.approx(90)
    # Layers count alike, whatever their size: one at 0°, one at 90°, so the cosine is 1/2.
    assert angle([along, 1e-9 * along, output], [along, across, output]) == pytest.approx(60)
    tilt = torch.tensor([1.0, 1e-6], dtype=DTYPE)
    assert angle([tilt, output], [along.double(), output]) == pytest.approx(1e-6 * 180 / pi, rel=1e-6)


def test_the_figure_draws_from_the_saved_record(claim: Claim) -> None:
    axes = drawn(draw, claim)
    assert [panel.get_ylabel() for panel in axes[3:]] == ["angle (degrees)"] * 2
    assert all(any("λ" in name for name in names(panel)) for panel in axes[:3])
    for panel, name in zip(axes[1:3], ("backprop", "newton"), strict=True):
        (image,) = (child for child in panel.get_children() if isinstance(child, AxesImage))
        assert np.asarray(image.get_array()).tolist() == claim.data["grid"][name]
