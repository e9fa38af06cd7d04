"""The claim "differential" at small size: numbers against closed forms, broken inverses, and the figure."""

from math import isnan, sqrt

import pytest
import torch
from torch import nn

import targetprop as tp
from cases import DTYPE, rand
from claim_cases import changed, drawn, names, negated, number
from targetprop.claims import Claim
from targetprop.claims.differential import differential
from targetprop.claims.figures.differential import draw
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
from targetprop.diagnostics import DenseInverse
from targetprop.layers import record_layers

SMALL = dict(width=6, depth=3, points=21, steps=12)


@pytest.fixture(scope="module")
def claim() -> Claim:
    return differential(0, **SMALL)


def test_it_holds(claim: Claim) -> None:
    assert claim.verdict == "holds" and claim.name == "differential" and claim.seeds == (0,)
    assert number(claim, "slope of the error, float64") == pytest.approx(2, abs=0.03)
    assert number(claim, "predicted curvature") == pytest.approx(1, abs=0.02)


def test_it_stops_where_rounding_and_uniterated_decoders_take_over(claim: Claim) -> None:
    assert 1e-9 < number(claim, "β of the smallest relative error, float64") < 1e-6
    assert 1e-5 < number(claim, "β of the smallest relative error, float32") < 1e-2
    assert number(claim, "near β = eps, float32") > 0.1
    # Two decoders, each 10 % off.
    assert 0.05 < number(claim, "difference inversion") < 0.25
    assert number(claim, "direct inversion") > 0.05


@pytest.mark.parametrize("alter", [negated, changed(lambda values: values + 1e-7)], ids=["negated", "shifted"])
def test_a_broken_inverse_makes_it_fail(alter) -> None:
    broken = differential(0, **{**SMALL, "points": 11}, alter=alter)
    assert broken.verdict == "fails"
    drawn(draw, broken)


def test_a_wrong_jacobian_without_iteration_makes_it_fail() -> None:
    broken = differential(0, **{**SMALL, "steps": 1, "points": 11})
    assert broken.verdict == "fails"
    assert number(broken, "slope of the error, float64") == pytest.approx(1, abs=0.05)


def scalar() -> tuple[nn.Sequential, torch.Tensor]:
    network = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1), nn.Tanh()).to(DTYPE)
    network[2].weight.data, network[2].bias.data = torch.tensor([[1.3]], dtype=DTYPE), torch.tensor([0.2], dtype=DTYPE)
    return network, rand(5, 1, seed=1)


def test_curvature_of_a_scalar_network_is_the_closed_form() -> None:
    network, x = scalar()
    record = record_layers(network, x)
    v = rand(5, 1, seed=2)
    (linear,) = predict(record, v)
    h, t = record.layers[0].h, record.output
    slope, bend = 1.3 * (1 - t**2), -2 * 1.3**2 * t * (1 - t**2)
    assert torch.allclose(linear.change, v / slope, rtol=1e-12)
    assert linear.size == pytest.approx(rms(v / slope)) and linear.curvature == pytest.approx(
        rms(0.5 * bend * (v / slope) ** 2 / slope), rel=1e-12
    )
    assert linear.rounding == pytest.approx(rms(h.abs() + t.abs() / slope), rel=1e-12)
    beta = 1e-4  # and the exact inverse agrees to third order
    exact = (torch.atanh(t + beta * v) - 0.2) / 1.3 - h
    assert rms(exact - beta * linear.change) == pytest.approx(linear.curvature * beta**2, rel=1e-2)


def test_rounding_of_an_orthogonal_network_is_the_sum_of_the_norms() -> None:
    network = nn.Sequential(*(nn.Linear(4, 4, bias=False, dtype=DTYPE) for _ in range(3)))
    for i, layer in enumerate(network):
        layer.weight.data = orthogonal(4, torch.Generator().manual_seed(i))
    x = rand(3, 4)
    lowest, upper = predict(record_layers(network, x), rand(3, 4, seed=1))
    assert (lowest.rounding, upper.rounding) == (pytest.approx(3 * rms(x)), pytest.approx(2 * rms(x)))
    assert lowest.curvature == upper.curvature == 0


@pytest.mark.parametrize("direct", [True, False])
def test_decoders_without_iteration_are_predicted_exactly(direct: bool) -> None:
    network, E = nn.Sequential(*random_network([4] * 4, nn.Tanh, 0), nn.Tanh()), 0.1 * rand(4, 4, seed=8)
    wrong = torch.eye(4, dtype=DTYPE) + E
    trial = Trial(
        network,
        rand(3, 4, seed=1),
        rand(3, 4, seed=2),
        alter=lambda g: Inverse(lambda y: g(y) @ wrong.T, lambda y, change: g.difference(y, change) @ wrong.T),
    )
    found = trial.changes(
        tp.Method(
            output_target=tp.GradientStep(1e-3),
            decoder=DenseInverse(),
            inversion=tp.Direct() if direct else tp.Difference(),
        )
    )
    expected = without_iteration(trial.record(), found[-1], E, direct=direct)
    assert len(expected) == 2
    for a, b in zip(found[:-1], expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-13)


def made_up(errors: list[float], betas: list[float]) -> Sweep:
    linear = Linear(torch.ones(1, 1), size=1.0, curvature=3.0, rounding=10.0)
    return Sweep(betas, [errors], 1e-16, [linear])


def test_fits_of_a_made_up_sweep() -> None:
    betas = [10**-i for i in range(11)]
    sweep = made_up([sqrt((3 * b**2) ** 2 + (5e-16) ** 2) for b in betas], betas)
    assert sweep.slope(0) == pytest.approx(2, abs=1e-6) and sweep.against_curvature(0) == pytest.approx(1, abs=1e-3)
    assert sweep.against_floor(0) == pytest.approx(0.5, rel=1e-2) and sweep.best(0)[0] == 1e-8
    assert sweep.relative(0)[2] == pytest.approx(0.03)
    linear = made_up([0.1 * b for b in betas], betas)
    assert linear.slope(0) == pytest.approx(1, abs=1e-9) and linear.against_curvature(0) > 1e3
    assert isnan(made_up([1.0, 1.0], [1.0, 0.5]).slope(0)) and isnan(farthest([2.0, float("nan")], 2.0))
    assert farthest([1.9, 2.3, 2.0], 2.0) == 2.3


def test_a_sweep_measures_every_hidden_layer() -> None:
    network, x = scalar()
    trial = Trial(network, x, torch.zeros(5, 1, dtype=DTYPE))
    record = trial.record()
    linear = predict(record, -2 * record.output)
    sweep = sweep_beta(trial, [1e-2, 1e-3], tp.InputSpace(steps=30, tolerance=0.0), linear, 2e-16)
    assert sweep.errors == [[pytest.approx(linear[0].curvature * b**2, rel=0.1) for b in (1e-2, 1e-3)]]


def test_the_figure_draws_from_json(claim: Claim) -> None:
    found = [name for axes in drawn(draw, claim) for name in names(axes)]
    assert {"predicted: curvature, slope 2", "predicted: rounding", "float32", "direct"} <= set(found)
