"""The claim "gauss-newton" at small size: numbers against oracles, broken inverses, and the figure."""

import sys

import pytest
import torch
from torch import nn

import targetprop as tp
from cases import DTYPE, rand
from claim_cases import changed, drawn, names, negated, number, rotated
from targetprop.claims import Claim
from targetprop.claims.altered import unaltered
from targetprop.claims.figures.gauss_newton import draw
from targetprop.claims.gauss_newton import gauss_newton
from targetprop.claims.measure.iterated_newton import converge
from targetprop.claims.measure.shrinking import shrinking_layers
from targetprop.claims.measure.trial import Trial, direction_error, relative_error
from targetprop.claims.networks import random_network
from targetprop.diagnostics import DenseInverse

SMALL = dict(width=5, depth=3, steps=(1, 4, 32), batch=3, shrinking=(12, 10, 8, 5, 3))


@pytest.fixture(scope="module")
def claim() -> Claim:
    return gauss_newton(0, **SMALL)


def test_it_holds(claim: Claim) -> None:
    assert claim.verdict == "holds" and claim.name == "gauss-newton" and claim.seeds == (0,)
    assert number(claim, "fewest steps") > 0.3  # the inverses are wrong, only iteration makes them right
    assert number(claim, "activation changes after 32") > 0.99999 and number(claim, "of weight changes after") > 0.99999
    assert number(claim, "batch") > 0.99999


def test_it_stops_where_layers_shrink_and_transposes_help(claim: Claim) -> None:
    assert number(claim, "lowest layer") < 0.8
    assert number(claim, "composite transposes: smallest") > 0.99999
    assert number(claim, "pre-activation") > 0.99999 > 0.95 > number(claim, "post-activation")
    assert number(claim, "error of the output's change") < 1e-3


sheared = changed(lambda values: values + 3 * values.roll(1, dims=1))


@pytest.mark.parametrize("alter", [negated, rotated, sheared], ids=["negated", "rotated", "sheared"])
def test_a_broken_inverse_makes_it_fail(alter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "curvlinops", None)  # the other oracle is slower
    broken = gauss_newton(0, **{**SMALL, "steps": (1, 32)}, alter=alter)
    assert broken.verdict == "fails"
    assert number(broken, "smallest cosine of weight changes after") < 0.999
    drawn(draw, broken)


def trial(depth: int = 3) -> Trial:
    return Trial(
        random_network([5] * (depth + 1), nn.Tanh, 0),
        rand(3, 5, seed=4),
        rand(3, 5, seed=5),
        nn.MSELoss(reduction="sum"),
    )


def test_one_step_and_one_hidden_layer_is_the_damped_inverse_by_hand() -> None:
    case, beta = trial(depth=2), 1e-7
    found = converge(case, (1, 3), beta)
    W = case.network[2].weight.detach()
    damping = 0.05 * float((W @ W.T).diagonal().mean())
    delta = -2 * beta * (case.network(case.x) - case.y).detach()
    newton = delta @ torch.linalg.inv(W).T
    for row, k in enumerate((1, 3)):
        tikhonov, one = torch.zeros_like(newton), W.T @ torch.linalg.inv(W @ W.T + damping * torch.eye(5, dtype=DTYPE))
        for _ in range(k):
            tikhonov = tikhonov + (delta - tikhonov @ W.T) @ one.T
        expected = float(((tikhonov - newton).norm(dim=1) / newton.norm(dim=1)).max())
        assert found.activations.size[row] == [pytest.approx(expected, rel=1e-6)]
        assert found.activations_predicted.size[row] == [pytest.approx(expected, rel=1e-9)]


def test_both_oracles_for_weights_agree() -> None:
    pytest.importorskip("curvlinops", exc_type=ImportError)
    found = converge(trial(), (2,), 1e-7)
    assert found.weights_curvlinops.size[0] == [pytest.approx(e, rel=1e-6, abs=1e-12) for e in found.weights.size[0]]
    assert found.weights_predicted.size[0] == [pytest.approx(e, rel=1e-4, abs=1e-12) for e in found.weights.size[0]]


def test_without_curvlinops_the_table_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    claim = gauss_newton(0, **SMALL)
    assert claim.verdict == "holds" and not any("curvlinops" in n.what for n in claim.measured)
    assert all(row[4] == "not installed" for row in claim.tables[1].rows)
    assert "curvlinops" not in names(draw(claim).axes[1])


def test_two_shrinking_layers_by_hand() -> None:
    found = shrinking_layers(1, (6, 5, 4, 2), batch=3, beta=1e-7, alter=unaltered)
    assert found.measured == [pytest.approx(p, abs=1e-5) for p in found.predicted]
    assert found.measured[1] == pytest.approx(1, abs=1e-9) and found.measured[0] < 0.999
    assert found.product_error < 1e-4 and found.reach_error < 1e-4 and min(found.composite) > 1 - 1e-9


def test_errors_of_vectors() -> None:
    a, b = torch.tensor([[1.0, 0.0], [1.0, 1e-9], [0.0, 0.0], [-2.0, 0.0]], dtype=DTYPE), torch.ones(4, 2, dtype=DTYPE)
    b[1:] = torch.tensor([1.0, 0.0])
    assert direction_error(a, b).tolist() == pytest.approx([1 - 0.5**0.5, 5e-19, 1.0, 2.0], rel=1e-9)
    assert relative_error(a, b).tolist() == pytest.approx([0.5**0.5, 1e-9, 1.0, 3.0])


def test_a_trial_leaves_no_gradients() -> None:
    case = trial()
    method = tp.Method(decoder=DenseInverse(), update=tp.DeltaRule())
    assert [gradient.numel() for gradient in case.updates(method)] == [30, 30, 30]
    assert all(p.grad is None for p in case.network.parameters())
    assert torch.equal(case.sample(1).x, case.x[1:2])


def test_the_figure_draws_from_json(claim: Claim) -> None:
    activations, weights, shrinking = (names(axes) for axes in drawn(draw, claim))
    assert "predicted from\nsingular values" in activations and "curvlinops" in weights
    assert "product of pseudo-inverses" in shrinking
