"""Joint sweeps: rate, bound and silence below against dense algebra, and inverses broken on purpose."""

from math import comb

import pytest
import torch

from claim_cases import drawn, negated, number, scaled
from targetprop.claims.altered import unaltered
from targetprop.claims.figures.joint_sweeps import draw
from targetprop.claims.joint_sweeps import joint_sweeps
from targetprop.claims.measure.sweeps import _bound, apart, contraction_factors, pose, sweep
from targetprop.inversion import sample_norm

SMALL = dict(depths=(3,), dampings=(0.3,), samples=2)


@pytest.fixture(scope="module")
def claim():
    return joint_sweeps(**SMALL)


@pytest.fixture(scope="module")
def task():
    return pose(4, 6, 0.3, 3, 0, unaltered)


def test_the_claim_holds(claim) -> None:
    assert claim.verdict == "holds"
    assert number(claim, "change of layer l before joint sweep") == 0
    assert 0.1 < number(claim, "largest error / bound") < 1
    assert number(claim, "sweeps from the top down to it") == number(claim, "joint sweeps to an error") - 1  # L − 2


def test_a_weaker_inverse_reaches_the_same_point_more_slowly(claim) -> None:
    weaker = joint_sweeps(**SMALL, alter=scaled(0.5))
    assert weaker.verdict == "holds"
    assert number(weaker, "joint sweeps to an error") > 1.5 * number(claim, "joint sweeps to an error")


def test_an_inverse_with_the_wrong_sign_fails() -> None:
    broken = joint_sweeps(depths=(2,), dampings=(0.3,), samples=2, alter=negated)
    assert broken.verdict == "fails"
    assert number(broken, "largest ρ") > 1


def test_the_fixed_point_hits_every_target(task) -> None:
    asked = [*task.solution[1:], task.delta]
    for layer, change, target in zip(task.record.inverted, task.solution, asked, strict=True):
        missing = layer.h + target - layer.f(layer.x + change).detach()
        assert float((sample_norm(missing) / sample_norm(target)).max()) < 1e-10


def test_near_the_fixed_point_the_error_follows_the_triangular_matrix(task) -> None:
    """Each layer's error is what its own step leaves and what its decoder makes of the error above."""
    found, width = sweep(task, "joint", 60, contraction_factors(task)), task.delta.shape[1]
    layers, eye = len(task.solution), torch.eye(width, dtype=task.delta.dtype)
    matrix = torch.zeros(len(task.delta), layers * width, layers * width, dtype=task.delta.dtype)
    for i, (layer, change, G) in enumerate(zip(task.record.inverted, task.solution, task.matrices, strict=True)):
        slopes = 1 - (layer.x + change).tanh().square()
        J = layer.maps[0].weight.detach() * slopes.unsqueeze(1)  # of W tanh(h) + b
        rows = slice(i * width, (i + 1) * width)
        matrix[:, rows, rows] = eye - G @ J
        if i + 1 < layers:
            matrix[:, rows, (i + 1) * width : (i + 2) * width] = G
    error = [torch.cat([u - v for u, v in zip(us, task.solution, strict=True)], 1) for us in found.iterates]
    predicted = (torch.linalg.matrix_power(matrix, 20) @ error[30].unsqueeze(2)).squeeze(2)
    off = sample_norm(error[50] - predicted) / sample_norm(error[50])
    assert float(off[sample_norm(error[50]) > 1e-10].max()) < 1e-3  # those that are not at rest yet
    assert torch.allclose(task.slowest(), torch.linalg.eigvals(matrix).abs().amax(1), rtol=1e-3)


def test_the_bound_is_a_power_times_a_polynomial(task) -> None:
    """With one ρ and one γ for all layers it is Σ_m C(k, m) ρ^(k−m) γ^m a_m, of degree L − 2."""
    start, k = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64), 9
    rho, gains = torch.full_like(start, 0.7), torch.full_like(start, 1.5)
    expected = sum(comb(k, m) * 0.7 ** (k - m) * 1.5**m * float(start[m]) for m in range(3))
    assert float(_bound(start, rho, gains, "joint", k + 1)[k, 0]) == pytest.approx(expected, rel=1e-12)


def test_sweeps_from_the_top_down_are_joint_ones_that_did_not_wait(task) -> None:
    rho = contraction_factors(task)
    joint, top_down = sweep(task, "joint", 12, rho), sweep(task, "top-down", 12, rho)
    assert apart(joint, top_down, task.start) < 1e-12
    assert apart(top_down, joint, task.start) > 1e-2  # the other way round they differ


def test_the_figure_draws_from_json(claim) -> None:
    layers, depths, factors = drawn(draw, claim)[:3]
    (bound,) = [line for line in layers.lines if line.get_linestyle() == "--"]
    assert list(bound.get_ydata()) == claim.data["runs"][-1]["bound"]
