"""Locally learned inverses: the measurement against dense oracles, and decoders that do not learn."""

import numpy as np
import pytest
import torch

import targetprop as tp
from claim_cases import drawn, negated
from targetprop.claims.altered import Altered
from targetprop.claims.figures.local_learning import draw
from targetprop.claims.local_learning import EXACT, damped_inverses, local_learning
from targetprop.claims.networks import digits_network, load_digits
from targetprop.diagnostics import DenseInverse, layer_jacobian
from targetprop.layers import record_layers

WIDTHS = (24, 16)
DAMPED = tp.DifferenceReconstruction(w=1.0, damping=0.3, relative=True, lr=2e-2)
EXACT_DAMPED = DenseInverse(w=1.0, damping=0.3, relative=True)


def measure(objectives: dict, steps: int = 60):
    promised = [name for name in objectives if name != EXACT]
    return damped_inverses(widths=WIDTHS, steps=steps, objectives=objectives, promised=promised)


@pytest.fixture(scope="module")
def claim():
    return measure({"damped": DAMPED, EXACT: EXACT_DAMPED})


def test_the_learned_inverse_contracts(claim) -> None:
    assert claim.verdict == "holds"
    assert claim.tables and claim.limits and "square layer" in claim.stops


def test_the_exact_inverse_has_the_factor_of_its_singular_values(claim) -> None:
    record = record_layers(digits_network(WIDTHS, 0), load_digits().test_x[:64])
    for index, layer in enumerate(record.layers[1:]):
        jacobian = layer_jacobian(layer).double()
        damping = 0.3 * jacobian.square().sum(2).mean()
        predicted = damping / (torch.linalg.svdvals(jacobian).amin(1).square() + damping)
        for factors in claim.data["alone"][EXACT]["factor"]:
            assert factors[index] == pytest.approx(float(predicted.median()), rel=1e-4)


def test_the_learned_factor_approaches_the_exact_one(claim) -> None:
    learned, exact = (claim.data["alone"][name]["factor"] for name in ("damped", EXACT))
    assert learned[-1] == pytest.approx(exact[-1], rel=0.1)
    assert min(learned[0]) > 1.2


def test_the_residual_of_the_exact_inverse_follows_the_closed_form() -> None:
    record = record_layers(digits_network(WIDTHS, 3), load_digits().test_x[:64])
    found = damped_inverses(3, widths=WIDTHS, steps=0, objectives={"exact": EXACT_DAMPED}, promised=["exact"]).data
    generator = torch.Generator().manual_seed(3)
    for index, layer in enumerate(record.layers[1:]):
        change = torch.randn(layer.h.shape, generator=generator).double()
        jacobian = layer_jacobian(layer).double()
        damping = 0.3 * jacobian.square().sum(2).mean()
        left, values, _ = torch.linalg.svd(jacobian, full_matrices=False)
        shrink = damping / (values.square() + damping)
        kept = (left.mT @ change.unsqueeze(2)).squeeze(2)
        for key, power in (("first", 1), ("last", 11)):
            predicted = (shrink**power * kept).norm(dim=1) / change.norm(dim=1)
            assert found["alone"]["exact"][key][0][index] == pytest.approx(float(predicted.median()), rel=0.03)


def test_widening_layers_are_measured_in_their_input_space() -> None:
    found = damped_inverses(widths=(12, 20), steps=0, objectives={"exact": EXACT_DAMPED}, promised=["exact"]).data
    assert found["alone"]["exact"]["factor"][0][0] < 0.9  # in the output space it would be 1


@pytest.mark.parametrize(
    "broken",
    [tp.Fixed(), Altered(DAMPED, negated)],
    ids=["random", "learned, sign turned"],
)
def test_decoders_that_are_no_inverses_fail(broken) -> None:
    claim = measure({"broken": broken}, steps=20)
    assert claim.verdict == "fails"
    assert not any(number.holds for number in claim.measured if number.bounded)


def test_something_must_be_promised() -> None:
    with pytest.raises(ValueError, match="none of damped is promised"):
        damped_inverses(widths=WIDTHS, steps=1, objectives={"damped": DAMPED}, promised=())


def test_the_figure_draws_from_json(claim) -> None:
    axes = drawn(draw, claim)
    assert len(axes) == 4
    for panel in axes:
        dashed = [line for line in panel.lines if line.get_linestyle() == "--"]
        assert [np.unique(line.get_ydata()).tolist() for line in dashed] == [[1.0]]


def test_auto_encoders_get_their_verdict_while_the_network_rests_and_while_it_trains() -> None:
    inverse = local_learning(widths=WIDTHS, steps=1, objectives={"exact": EXACT_DAMPED})
    assert inverse.verdict == "holds"
    noise = local_learning(widths=WIDTHS, steps=1, objectives={"denoising": tp.Denoising()})
    assert noise.verdict == "fails" and not noise.should_hold
    assert [number.holds for number in noise.measured] == [False] * 4  # the factor and its share, alone and together


def test_weight_inverses_have_the_factor_of_their_damping_whatever_the_slopes(claim) -> None:
    objectives = {"weight inverse": tp.WeightInverse(damping=0.3, warmup=60, share=100.0, activity=0.0)}
    found = damped_inverses(
        widths=WIDTHS, steps=4, objectives=objectives, promised=list(objectives), promised_together=list(objectives)
    )
    assert [n.holds for n in found.measured if n.what.startswith("together, weight inverse")] == [True, True]
    record = record_layers(digits_network(WIDTHS, 0), load_digits().test_x[:64])
    for index, layer in enumerate(record.layers[1:]):
        W, slopes = layer.maps[0].weight.detach().double(), 1 - layer.h.double().square()
        if index == 1:
            slopes = torch.ones_like(slopes)  # the output has no tanh
        G = W.T @ torch.linalg.inv(W @ W.T + 0.3 * W.square().sum() / len(W) * torch.eye(len(W)).double())
        product = slopes.unsqueeze(2) * (W @ G) * slopes.unsqueeze(1)
        predicted = torch.linalg.matrix_norm(torch.eye(len(W)).double() - product, ord=2).median()
        assert found.data["alone"]["weight inverse"]["factor"][-1][index] == pytest.approx(float(predicted), rel=1e-3)
