"""The (w, λ) bridge: learned decoders, predicted updates, angles by hand, and inverses broken on purpose."""

import json
from dataclasses import replace
from math import pi
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import AxesImage
from torch import Tensor, nn

import targetprop as tp
from cases import DTYPE, rand, relative
from targetprop.claims.altered import Alter, unaltered
from targetprop.claims.bridge import bridge
from targetprop.claims.claim import Claim
from targetprop.claims.figures.bridge import draw
from targetprop.claims.measure.damping_grid import Oracle, angle, damped_method, deviation
from targetprop.claims.measure.learned_family import learn_pair
from targetprop.claims.measure.trial import random_trial
from targetprop.claims.networks import orthogonal
from targetprop.decoders import Inverse
from targetprop.diagnostics import backprop_gradients

SMALL: dict[str, Any] = dict(width=5, networks=1, updates=120, dampings=(1e-4, 1.0, 1e4), steps=(1, 4, 64))


@pytest.fixture(scope="module")
def claim() -> Claim:
    return bridge(**SMALL)


def changed(change) -> Alter:
    """Apply a linear map to what every inverse returns."""
    return lambda g: Inverse(lambda y: change(g(y)), lambda y, moved: change(g.difference(y, moved)))


def turn(values: Tensor) -> Tensor:
    return values @ orthogonal(values.shape[1], torch.Generator().manual_seed(5))


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


BROKEN = {
    "negated": changed(lambda values: -values),
    "too large": changed(lambda values: 1.05 * values),
    "rotated": changed(turn),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_inverses_fail(name: str) -> None:
    claim = bridge(**{**SMALL, "dampings": (1e-4, 1e4), "steps": (1, 4)}, alter=BROKEN[name])
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
    figure = draw(replace(claim, data=json.loads(json.dumps(claim.data, allow_nan=False))))
    panels = figure.axes[:3]
    for axes in panels:
        assert axes.get_xlabel() and axes.get_ylabel() and axes.get_title(loc="left")
        predictions = [line for line in axes.lines if line.get_color() == "black" and line.get_linestyle() == "--"]
        legend = axes.get_legend()
        assert predictions and legend is not None
        assert predictions[-1].get_label() in [text.get_text() for text in legend.get_texts()]
    for axes, name in zip(panels[1:], ("backprop", "newton"), strict=True):
        (image,) = (child for child in axes.get_children() if isinstance(child, AxesImage))
        assert np.asarray(image.get_array()).tolist() == claim.data["grid"][name]
    assert [axes.get_ylabel() for axes in figure.axes[3:]] == ["angle (degrees)"] * 2
