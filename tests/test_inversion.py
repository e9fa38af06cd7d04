"""Inversion: every rule through one contract, then status, best iterate, damping and Anderson mixing."""

import pytest
import torch
from torch import Tensor

import targetprop as tp
from cases import DTYPE, RULES, rand
from targetprop.inversion import RULES as RULE_CLASSES
from targetprop.inversion import sample_norm
from targetprop.testing import InversionContract


class TestDirect(InversionContract):
    rule, differential, needs_exact = RULES["direct"], False, True


class TestDifference(InversionContract):
    rule, needs_exact = RULES["difference"], True


class TestInputSpace(InversionContract):
    rule = RULES["input-space"]


class TestInputSpaceHalfSteps(InversionContract):
    rule = RULES["input-space, half steps"]


class TestInputSpaceAnderson(InversionContract):
    rule = RULES["input-space, Anderson"]


class TestOutputSpace(InversionContract):
    rule = RULES["output-space"]


class TestOutputSpaceAnderson(InversionContract):
    rule = RULES["output-space, Anderson"]


class TestOutputSpaceNotDifferential(InversionContract):
    rule, differential = RULES["output-space, not differential"], False


class TestKrylov(InversionContract):
    rule = RULES["krylov"]


class TestRegularised(InversionContract):
    rule, accuracy = RULES["regularised"], 0.2  # the damping keeps it from the target


def test_every_rule_has_a_contract() -> None:
    tested = {c.rule.name for c in InversionContract.__subclasses__()}
    assert tested == set(RULE_CLASSES)


ITERATIVE = ["input-space", "input-space, half steps", "input-space, Anderson", "output-space"]


def test_regularised_rule_finds_the_ridge_solution() -> None:
    A, x0, t = rand(3, 4), rand(5, 4, seed=1), rand(5, 3, seed=2)
    rule = tp.Regularised(steps=3000, alpha=0.1, damping=0.7, tolerance=1e-12)
    found = tp.invert(lambda x: x @ A.T, lambda y: y, t, x0, method=rule)
    eye = torch.eye(4, dtype=DTYPE)
    expected = x0 + ((t - x0 @ A.T) @ A) @ torch.linalg.inv(A.T @ A + 0.7 * eye)
    assert (found.x - expected).abs().max() < 1e-9
    assert not rule.needs_decoder


def test_tolerance_and_steps_are_counted_per_sample() -> None:
    shrink = torch.tensor([[0.0], [0.1], [0.5], [0.9]], dtype=DTYPE)  # error after k steps: shrinkᵏ
    f, g = (lambda x: x), (lambda y: (1 - shrink) * y)
    x0, t = torch.zeros(4, 1, dtype=DTYPE), torch.ones(4, 1, dtype=DTYPE)
    found = tp.invert(f, g, t, x0, method=tp.InputSpace(steps=20, tolerance=1e-3 * 1.0001))
    assert found.steps.tolist() == [1, 3, 10, 20]
    assert found.status.tolist() == [tp.Status.CONVERGED] * 3 + [tp.Status.MAX_STEPS]
    assert found.converged.tolist() == [True, True, True, False]
    error = (found.x - t).abs().flatten()
    assert torch.allclose(error, shrink.flatten() ** found.steps, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", ITERATIVE)
def test_a_solved_sample_takes_no_step(name: str) -> None:
    x0 = rand(3, 4)
    f, g = (lambda x: 2 * x + 1), (lambda y: 0.3 * y + 5)
    t = f(x0)
    t[1] += 1
    found = tp.invert(f, g, t, x0, f(x0), method=RULES[name])
    assert found.steps[[0, 2]].tolist() == [0, 0] and int(found.steps[1]) > 0
    assert found.converged.all()
    assert torch.equal(found.x[[0, 2]], x0[[0, 2]]) and (found.x[1] - x0[1] - 0.5).abs().max() < 1e-5


def test_both_residuals_are_reported() -> None:
    A, G = rand(4, 4) / 3 + torch.eye(4, dtype=DTYPE), torch.eye(4, dtype=DTYPE) * 0.5
    f, g = (lambda x: x @ A.T), (lambda y: y @ G.T)
    x0, t = rand(5, 4, seed=1), rand(5, 4, seed=2)
    for rule in (tp.Difference(), tp.Direct(), tp.InputSpace(steps=3, tolerance=0.0)):
        found = tp.invert(f, g, t, x0, method=rule)
        assert torch.allclose(found.forward_residual, sample_norm(t - f(found.x)), rtol=1e-12)
        assert torch.allclose(found.inverse_residual, sample_norm(g(t) - g(f(found.x))), rtol=1e-12)
    assert tp.invert(f, g, t, x0, method=tp.Difference(), measure=False).forward_residual is None


def test_the_best_iterate_is_kept_sample_by_sample() -> None:
    gain = torch.tensor([[1.5], [2.5]], dtype=DTYPE)  # I − GA is −0.5 and −1.5
    f, g = (lambda x: x), (lambda y: gain * y)
    x0, t = torch.zeros(2, 1, dtype=DTYPE), torch.ones(2, 1, dtype=DTYPE)
    found = tp.invert(f, g, t, x0, method=tp.InputSpace(steps=4, tolerance=0.0))
    assert torch.allclose(found.x.flatten(), torch.tensor([1 - 0.5**4, 0.0], dtype=DTYPE))  # the second only got worse
    assert torch.allclose(found.forward_residual, torch.tensor([0.5**4, 1.0], dtype=DTYPE))


def test_growth_is_divergence() -> None:
    found = tp.invert(lambda x: x, lambda y: 5 * y, torch.ones(1, 1), torch.zeros(1, 1), method=tp.InputSpace(steps=99))
    assert found.status.tolist() == [tp.Status.FALLBACK] and found.diverged.tolist() == [True]
    assert int(found.steps[0]) == 2  # 4, then 16 times the first step
    assert found.x.tolist() == [[5.0]] and found.forward_residual.tolist() == [4.0]  # of the difference target


def overflow(x: Tensor) -> Tensor:
    """The identity, but infinite beyond 10."""
    return torch.where(x.abs() > 10, torch.inf * x.sign(), x)


@pytest.mark.parametrize("name", ITERATIVE)
@pytest.mark.parametrize("where", ["f", "g"])
def test_an_overflowing_sample_leaves_the_others_unchanged_to_the_bit(name: str, where: str) -> None:
    f = overflow if where == "f" else lambda x: 1.0 * x
    g = (lambda y: 1.3 * y) if where == "f" else lambda y: 1.3 * overflow(y)
    x0 = rand(4, 3)
    t = x0 + 0.1 * rand(4, 3, seed=1)
    far = t.clone()
    far[2] = 100.0 if where == "g" else 9.9
    alpha = 2.0 if where == "f" else 1.0  # 2 · 1.3 overshoots 9.9 beyond 10
    rule = RULES[name].__class__(steps=40, alpha=alpha, anderson=RULES[name].anderson)
    bad, good = (tp.invert(f, g, target, x0, method=rule) for target in (far, t))
    keep = torch.tensor([0, 1, 3])
    assert torch.equal(bad.x[keep], good.x[keep]) and torch.equal(bad.status[keep], good.status[keep])
    assert torch.isfinite(bad.x).all()
    once = tp.invert(f, g, far, x0, method=tp.Difference())
    if int(once.status[2]) == tp.Status.MAX_STEPS:  # as every single estimate that is finite
        assert int(bad.status[2]) == tp.Status.FALLBACK and torch.equal(bad.x[2], once.x[2])
    else:  # the decoder has overflowed
        assert int(bad.status[2]) == tp.Status.DIVERGED and torch.equal(bad.x[2], x0[2])


GAINS = torch.tensor([[0.8], [1.5], [2.5], [7.0], [7.0]], dtype=DTYPE)  # I − GA: 0.2, −0.5, −1.5, −6, −6


@pytest.mark.parametrize("alpha", [1.0, 0.75])
@pytest.mark.parametrize("measure", [True, False])
def test_samples_whose_decoder_does_not_contract_fall_back_to_difference_targets(alpha: float, measure: bool) -> None:
    f, g = (lambda x: x), (lambda y: GAINS * y)
    x0, t = rand(5, 1), rand(5, 1) + 1
    rule = tp.InputSpace(steps=200, alpha=alpha)
    found = tp.invert(f, g, t, x0, method=rule, measure=measure)
    once = tp.invert(f, g, t, x0, method=tp.Difference())
    fell = (1 - alpha * GAINS.flatten()).abs() > 1
    assert found.status.tolist() == [tp.Status.FALLBACK if bad else tp.Status.CONVERGED for bad in fell]
    torch.testing.assert_close(found.x[fell], once.x[fell], rtol=1e-14, atol=0)
    assert (found.x[~fell] - t[~fell]).abs().max() < 1e-5
    residual = found.forward_residual
    assert residual is not None and once.forward_residual is not None
    assert residual[fell].isnan().all() if not measure else torch.allclose(residual, sample_norm(t - f(found.x)))


@pytest.mark.parametrize("anderson", [0, 3])
def test_the_difference_target_is_where_output_space_iteration_starts(anderson: int) -> None:
    f, g = (lambda x: x), (lambda y: GAINS * y)
    x0, t = rand(5, 1), rand(5, 1) + 1
    found = tp.invert(f, g, t, x0, method=tp.OutputSpace(steps=60, anderson=anderson))
    once = tp.invert(f, g, t, x0, method=tp.Difference())
    fell = found.status == tp.Status.FALLBACK
    assert fell.tolist() == [False, False, True, True, True] or anderson
    assert torch.equal(found.x[fell], once.x[fell])
    assert torch.allclose(found.forward_residual, sample_norm(t - f(found.x)), rtol=1e-12, atol=1e-15)


def test_a_sample_that_had_come_closer_keeps_its_best_iterate() -> None:
    A = torch.diag(torch.tensor([1.0, 3.0], dtype=DTYPE))  # I − GA: 0 and −2
    f, g = (lambda x: x @ A), (lambda y: y)
    t = torch.tensor([[1.0, 1e-3]], dtype=DTYPE)
    found = tp.invert(f, g, t, torch.zeros(1, 2, dtype=DTYPE), method=tp.InputSpace(steps=60))
    assert found.status.tolist() == [tp.Status.DIVERGED] and found.forward_residual is not None
    assert torch.equal(found.x, t) and float(found.forward_residual) < 3e-3  # here the first step is the best


def test_krylov_falls_back_where_its_probes_overflow() -> None:
    f, g = overflow, lambda y: 1.0 * y
    x0, t = torch.tensor([[0.0], [9.0]], dtype=DTYPE), torch.tensor([[1.0], [-3.0]], dtype=DTYPE)
    found = tp.invert(f, g, t, x0, method=tp.Krylov(steps=1))
    assert found.status.tolist() == [tp.Status.MAX_STEPS] * 2
    far = tp.invert(f, g, torch.tensor([[1.0], [12.0]], dtype=DTYPE), x0, y0=x0, method=tp.Krylov(steps=1))
    assert far.status.tolist() == [tp.Status.MAX_STEPS, tp.Status.FALLBACK]
    assert float(far.x[1]) == 12.0  # x₀ + g(t) − g(y₀)


def test_half_steps_cure_oscillation_at_kinks() -> None:
    # f and g have kinks at different places, so J_g J_f = 2.2 at the solution: plain iteration jumps over it.
    f, g = (lambda x: torch.where(x > 0, 2.2 * x, x)), (lambda y: torch.where(y > 0, y, y / 2.2))
    x0, t = torch.full((1, 1), -0.5, dtype=DTYPE), torch.full((1, 1), 1.0, dtype=DTYPE)
    plain, half = (tp.invert(f, g, t, x0, method=tp.InputSpace(steps=100, alpha=a)) for a in (1.0, 0.5))
    assert not plain.converged.all() and half.converged.all()
    assert abs(half.x.item() - 1 / 2.2) < 1e-5


@pytest.mark.parametrize("width", [1, 2, 3])
def test_anderson_is_exact_on_affine_problems_one_step_after_their_rank(width: int) -> None:
    A = torch.eye(width, dtype=DTYPE) + 0.25 * rand(width, width)
    x0, wanted = rand(6, width, seed=2), rand(6, width, seed=3)
    f, g = (lambda x: x @ A.T), (lambda y: y)
    mixed, plain = (
        tp.invert(f, g, f(wanted), x0, method=tp.InputSpace(steps=width + 1, anderson=m, tolerance=0.0))
        for m in (width, 0)
    )
    assert (mixed.x - wanted).abs().max() < 1e-6
    assert (plain.x - wanted).abs().max() > 1e-3


def test_anderson_needs_fewer_steps_than_plain_iteration() -> None:
    A = torch.eye(5, dtype=DTYPE) + 0.2 * rand(5, 5)
    f, g = (lambda x: x @ A.T + 0.1 * (x @ A.T).tanh()), (lambda y: y)
    x0, t = rand(6, 5, seed=2), f(rand(6, 5, seed=3))
    plain, mixed = (tp.invert(f, g, t, x0, method=tp.InputSpace(steps=200, anderson=m, tolerance=1e-9)) for m in (0, 4))
    assert plain.converged.all() and mixed.converged.all()
    assert (mixed.steps < plain.steps).all()
    assert mixed.steps.sum() < 0.6 * plain.steps.sum()


def test_anderson_falls_back_to_the_plain_step_when_the_step_grew() -> None:
    f, g = (lambda x: x), (lambda y: -0.5 * y)  # every step is longer than the last
    x0, t = torch.zeros(1, 2, dtype=DTYPE), torch.ones(1, 2, dtype=DTYPE)
    seen: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(x)
        return f(x)

    tp.invert(watched, g, t, x0, x0, method=tp.InputSpace(steps=3, anderson=2))
    assert [round(x[0, 0].item(), 6) for x in seen] == [-0.5, -1.25, -2.375]  # x ← x − 0.5 (1 − x)


BAD = [
    (lambda: tp.InputSpace(steps=-1), "steps must be ≥ 0"),
    (lambda: tp.InputSpace(alpha=0.0), "alpha must lie in"),
    (lambda: tp.OutputSpace(alpha=2.5), "alpha must lie in"),
    (lambda: tp.OutputSpace(tolerance=-1.0), "tolerance must be ≥ 0"),
    (lambda: tp.InputSpace(anderson=-2), "anderson is a number"),
    (lambda: tp.invert(lambda x: x, lambda y: y, torch.ones(2, 3), torch.ones(2, 2)), r"target has shape \(2, 3\)"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_settings_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_krylov_with_transposes_ends_at_the_damped_inverse_of_its_own_gain(damping: float) -> None:
    A, x0, t = rand(3, 5), rand(6, 5, seed=1), rand(6, 3, seed=2)
    rule = tp.Krylov(steps=3, damping=damping)
    found = tp.invert(lambda x: x @ A.T, lambda y: y @ A, t, x0, method=rule)
    asked = t - x0 @ A.T
    for i, r in enumerate(asked):
        mu = damping * (A.T @ r).square().sum() / r.square().sum()
        wanted = A.T @ torch.linalg.solve(A @ A.T + mu * torch.eye(3, dtype=DTYPE), r)
        torch.testing.assert_close(found.x[i] - x0[i], wanted, rtol=1e-6, atol=1e-9)


def test_krylov_steps_are_those_of_conjugate_gradients() -> None:
    A, x0, t = rand(7, 6), rand(4, 6, seed=1), rand(4, 7, seed=2)
    for steps in (1, 2, 3):
        rule = tp.Krylov(steps=steps)
        found = tp.invert(lambda x: x @ A.T, lambda y: y @ A, t, x0, method=rule)
        for i, r in enumerate(t - x0 @ A.T):  # the best in span{Aᵀr, (AᵀA) Aᵀr, …}
            basis = torch.stack([torch.linalg.matrix_power(A.T @ A, k) @ (A.T @ r) for k in range(steps)], dim=1)
            best = basis @ torch.linalg.lstsq(A @ basis, r.unsqueeze(1)).solution.squeeze(1)
            torch.testing.assert_close(found.x[i] - x0[i], best, rtol=1e-7, atol=1e-9)


def test_krylov_inverts_each_sample_s_own_kinks() -> None:
    """Where f opens other units for every sample, one affine inverse cannot serve all; transposed slopes can."""
    W, x0 = torch.eye(6, dtype=DTYPE) + 0.3 * rand(6, 6), rand(8, 6, seed=1)
    slope = torch.where(x0 @ W.T > 0, 1.0, 0.1).to(DTYPE)  # of leaky ReLU in the forward pass
    f = lambda x: torch.nn.functional.leaky_relu(x @ W.T, 0.1)  # noqa: E731
    wanted = x0 + 1e-6 * rand(8, 6, seed=2)
    asked = sample_norm(f(wanted) - f(x0))
    own = tp.invert(f, lambda y: (y * slope) @ W, f(wanted), x0, method=tp.Krylov(steps=6))
    assert own.forward_residual is not None and (own.forward_residual < 1e-4 * asked).all()
    shared = tp.invert(f, lambda y: y @ torch.linalg.inv(W).T, f(wanted), x0, method=tp.InputSpace(steps=6))
    assert shared.forward_residual is not None and shared.forward_residual.median() > 1e-2 * asked.median()


def test_krylov_stays_where_nothing_responds_and_refuses_bad_settings() -> None:
    x0, t = rand(2, 3), rand(2, 3, seed=1)
    found = tp.invert(lambda x: torch.zeros_like(x), lambda y: y, t, x0, method=tp.Krylov(steps=2))
    assert torch.equal(found.x, x0)
    for settings in ({"steps": 0}, {"damping": -1.0}):
        with pytest.raises(ValueError, match="krylov needs steps ≥ 1 and damping ≥ 0"):
            tp.Krylov(**settings)
