"""Convergence: the measured decay against dense oracles, and inverses broken on purpose."""

from importlib import import_module

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import DTYPE, rand
from claim_cases import drawn, negated, number
from targetprop import diagnostics
from targetprop.claims.altered import unaltered
from targetprop.claims.convergence import convergence
from targetprop.claims.figures.convergence import draw
from targetprop.claims.measure.decay import measure_decay
from targetprop.claims.measure.pairs import Pair, misplaced_kinks, plain_inverse, random_pair, shrinking
from targetprop.decoders import Inverse

SMALL = dict(widths=(8,), samples=8, steps=25, epochs=3)


@pytest.fixture(autouse=True, scope="module")
def few_settings():
    module = import_module("targetprop.claims.convergence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SLOPES", (0.7, 0.3))
        patch.setattr(module, "_DAMPINGS", (1e-3, 0.0))
        yield


@pytest.fixture(scope="module")
def claim(few_settings):
    return convergence(**SMALL)


class _Jump(torch.autograd.Function):
    """Adds jumps that no derivative sees."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x + 0.02 * torch.sign(torch.sin(40 * x))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def jvp(ctx, tangent: Tensor) -> Tensor:
        return tangent.clone()


def jumping(g: Inverse) -> Inverse:
    return plain_inverse(lambda y: _Jump.apply(g(y)))


def test_the_claim_holds(claim) -> None:
    assert claim.verdict == "holds"
    assert number(claim, "affine maps, relative distance from the closed form") < 1e-12
    assert 0.3 < number(claim, "random networks, largest ρ") < 1
    assert 0.9 < number(claim, "largest decay per step / ρ") <= 1  # the bound is met, and nearly reached


@pytest.mark.parametrize("space", ["input-space", "output-space"])
def test_an_inverse_with_the_wrong_sign_breaks_the_premise(space: str) -> None:
    assert measure_decay(random_pair("any", nn.Tanh, 8, 8, 0, negated), space, 25).rho > 1.5


def test_an_inverse_whose_jumps_the_derivative_hides_fails(monkeypatch) -> None:
    module = import_module("targetprop.claims.convergence")
    monkeypatch.setattr(module, "_ACTIVATIONS", {"tanh": nn.Tanh})
    monkeypatch.setattr(module, "_SLOPES", (0.3,))
    monkeypatch.setattr(module, "_DAMPINGS", (0.0,))
    broken = convergence(**{**SMALL, "epochs": 1}, alter=jumping)
    assert broken.verdict == "fails"
    assert number(broken, "random networks, largest ρ") < 1  # the premise seems to hold, the prediction does not
    assert number(broken, "largest error / ρᵏ e_0") > 2


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ELU])
def test_the_constant_is_the_dense_one(activation) -> None:
    pair = random_pair("any", activation, 8, 8, 0, unaltered)
    assert pair.solution is not None
    measured = measure_decay(pair, "input-space", 20)
    radius, found = (pair.x0 - pair.solution).norm(dim=1, keepdim=True), []
    for i in range(40):
        direction = rand(*pair.x0.shape, seed=i)
        x = pair.solution + radius * direction / direction.norm(dim=1, keepdim=True)
        dense = torch.func.jacrev(lambda x: (pair.g(pair.f(x)) - x).sum(0))(x).movedim(1, 0)  # samples are independent
        found.append(float(torch.linalg.matrix_norm(dense, ord=2).detach().max()))
    assert sorted(found)[20] < measured.rho < 1.1 * max(found)


@pytest.mark.parametrize("space", ["input-space", "output-space"])
def test_decay_of_a_scaled_inverse_is_its_error(space: str) -> None:
    A = torch.linalg.qr(rand(5, 5))[0]
    g = Inverse(lambda y: 0.6 * y @ A, lambda y, change: 0.6 * change @ A)
    pair = Pair("scaled", lambda x: x @ A.T, g, rand(3, 5, seed=1), rand(3, 5, seed=2))
    decay = measure_decay(pair, space, 12)
    assert decay.rho == pytest.approx(0.4, rel=1e-9)  # ‖I − 0.6 AᵀA‖
    assert decay.rates.tolist() == pytest.approx([0.4] * 3, rel=1e-6)
    assert decay.against_bound == pytest.approx(1, rel=1e-6)
    # e_k = 0.4 e_{k−1}, so the last move is 0.6 e_{k−1}: the a-posteriori bound is reached too.
    assert decay.against_a_posteriori == pytest.approx(1, rel=1e-6)


def test_between_the_kinks_the_inverse_has_the_slope_that_is_missing() -> None:
    pair = misplaced_kinks(0.25, -0.1, 200, 0)
    assert pair.solution is not None
    norms = diagnostics.lipschitz(pair.f, pair.g, pair.solution, pair.solution, points=2)
    missed = norms > 1e-6
    assert 0.1 < float(missed.double().mean()) < 0.9
    assert float(norms[missed].min()) > 2.5  # about 1/0.25 − 1, times the condition of the weights


def test_a_null_space_has_constant_one_on_the_larger_side_only() -> None:
    pair = shrinking(9, 4, 10, 0)
    assert measure_decay(pair, "input-space", 30).rho >= 1 - 1e-9
    assert measure_decay(pair, "output-space", 30).rho < 1


def test_the_figure_shows_measurement_and_bound(claim) -> None:
    axes, decay = drawn(draw, claim), claim.data["decays"][0]
    bounds = [line.get_ydata() for line in axes[0].get_lines() if line.get_linestyle() == "--"]
    assert len(axes) == 4
    assert any(list(b) == [decay["rho"] ** k for k in range(len(b))] for b in bounds if len(b))


def test_spectral_norm_is_the_largest_singular_value() -> None:
    A = rand(7, 5)
    found = diagnostics.spectral_norm(lambda x: (x @ A.T).sin(), torch.zeros(2, 5, dtype=DTYPE), steps=200)
    assert found.tolist() == pytest.approx([float(torch.linalg.matrix_norm(A, ord=2))] * 2, rel=1e-6)


def test_visited_points_are_the_iterates() -> None:
    A = torch.eye(3, dtype=DTYPE) + 0.2 * rand(3, 3)
    f, g, x0 = (lambda x: x @ A.T), (lambda y: y), rand(2, 3, seed=1)
    t, x = rand(2, 3, seed=2), x0
    rule = tp.InputSpace(steps=3, tolerance=0.0)
    points = diagnostics.visited(f, g, t, x0, rule)
    assert len(points) == 4
    for point in points:
        assert torch.allclose(point, x, atol=1e-13)
        x = x + t - f(x)
