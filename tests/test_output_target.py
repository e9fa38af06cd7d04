"""The output's target: sizes, reductions, and the Gauss-Newton step against dense Hessians."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import targetprop as tp
from cases import DTYPE, LOSSES, rand, relative
from targetprop.layers import Reduction
from targetprop.output_target import loss_gradient

N = 4


def oracle(loss, h: Tensor, y: Tensor, damping: float) -> Tensor:
    """Return ``−(H + μI)⁻¹ ∂C/∂h`` sample by sample, the gradient and Hessian of one sample's loss by autograd."""
    rows = []
    for i in range(len(h)):

        def one(v: Tensor, i: int = i) -> Tensor:
            return loss(v.unsqueeze(0), y[i : i + 1])

        gradient = torch.autograd.functional.jacobian(one, h[i])
        hessian = torch.autograd.functional.hessian(one, h[i])
        rows.append(-torch.linalg.solve(hessian + damping * torch.eye(len(h[i]), dtype=DTYPE), gradient))
    return torch.stack(rows)


# Weighted cross-entropy is a weighted mean: a sample alone has weight 1.
PLAIN = [name for name in LOSSES if name != "cross-entropy, weights"]


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_step_is_beta_times_the_per_sample_gradient(name: str) -> None:
    case, h = LOSSES[name], rand(N, 3)
    y = case.labels(N)
    change = tp.GradientStep(beta=0.3)(h, y, case.loss)
    v = h.clone().requires_grad_()
    value = case.loss(v, y)
    (gradient,) = torch.autograd.grad(value, v)
    n = 1 if "sum" in name else N
    assert torch.equal(change.loss, value.detach())
    assert torch.allclose(change.delta, -0.3 * n * gradient, rtol=1e-13)
    assert torch.allclose(-change.delta / change.scale, gradient, rtol=1e-13)  # what the output layer will use
    assert not change.loss.requires_grad and not change.delta.requires_grad


@pytest.mark.parametrize("damping", [0.1, 2.0])
@pytest.mark.parametrize("name", PLAIN)
def test_gauss_newton_step_solves_with_the_dense_hessian(name: str, damping: float) -> None:
    case, h = LOSSES[name], rand(N, 3)
    y = case.labels(N)
    change = tp.GaussNewtonStep(beta=0.5, damping=damping)(h, y, case.loss)
    assert relative(change.delta, 0.5 * oracle(case.loss, h, y, damping)) < 1e-11


def test_gauss_newton_step_takes_any_loss() -> None:
    def loss(h: Tensor, y: Tensor) -> Tensor:
        return (h - y).square().mean() + h.exp().sum() / h.shape[0] + h.prod(dim=1).mean()

    h, y = 0.3 * rand(N, 3), rand(N, 3, seed=2)
    change = tp.GaussNewtonStep(beta=1.0, damping=1.0)(h, y, loss)
    assert relative(change.delta, oracle(loss, h, y, 1.0)) < 1e-11


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.MSELoss(reduction="sum")])
def test_a_whole_gauss_newton_step_reaches_the_least_squares_minimum(loss) -> None:
    h, y = rand(N, 2, 3), rand(N, 2, 3, seed=1)
    change = tp.GaussNewtonStep(beta=1.0, damping=0.0)(h, y, loss)
    assert torch.allclose(h + change.delta, y, rtol=1e-12, atol=1e-13)


def test_label_target_is_the_way_to_the_label() -> None:
    h, classes = rand(N, 3), torch.tensor([0, 2, 1, 1])
    change = tp.LabelTarget(beta=0.5)(h, classes, nn.CrossEntropyLoss())
    assert torch.allclose(change.delta, 0.5 * (torch.eye(3, dtype=DTYPE)[classes] - h.softmax(1)), rtol=1e-13)
    y = rand(N, 3, seed=1)
    assert torch.allclose(tp.LabelTarget()(h, y, nn.MSELoss()).delta, y - h, rtol=1e-13)
    assert torch.allclose(change.delta, tp.GradientStep(0.5)(h, classes, nn.CrossEntropyLoss()).delta, rtol=1e-12)


BAD = [
    (lambda: tp.GradientStep(beta=0.0), "beta must be > 0; got 0.0"),
    (
        lambda: tp.GaussNewtonStep(damping=0.0)(rand(2, 3), torch.tensor([0, 1]), nn.CrossEntropyLoss()),
        "singular; set .* damping > 0",
    ),
    (
        lambda: loss_gradient(rand(2, 3), torch.tensor([0, 3]), nn.CrossEntropyLoss()),
        "labels must lie in 0…2, .* got 0…3",
    ),
    (
        lambda: loss_gradient(rand(2, 3), rand(2, 4), nn.BCEWithLogitsLoss()),
        r"output of shape \(2, 3\) with y of shape \(2, 4\)",
    ),
    (lambda: loss_gradient(rand(2, 3), rand(2, 3), nn.MSELoss(reduction="none")), r"the loss has shape \(2, 3\)"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# What a loss is, if it does not say so.

SUMS = {
    "a partial": (partial(functional.cross_entropy, reduction="sum"), True),
    "a function": (lambda h, y: functional.cross_entropy(h, y, reduction="sum"), True),
    "a mean": (lambda h, y: functional.cross_entropy(h, y), False),
    "one that says so": (nn.CrossEntropyLoss(reduction="sum"), True),
    "smoothed, a mean": (partial(functional.cross_entropy, label_smoothing=0.1), False),
}


@pytest.mark.parametrize("name", SUMS)
def test_whether_a_loss_is_a_sum_is_found_by_trying(name: str) -> None:
    loss, summed = SUMS[name]
    h, y = rand(N, 3), torch.arange(N) % 3
    change = tp.GradientStep(beta=0.3)(h, y, loss)
    gradient = loss_gradient(h, y, loss).output
    assert torch.allclose(change.delta, -0.3 * (1 if summed else N) * gradient, rtol=1e-13)
    assert change.scale == pytest.approx(0.3 * (1 if summed else N))


def test_a_loss_is_tried_once_and_its_random_numbers_are_its_own() -> None:
    calls = []

    def loss(h: Tensor, y: Tensor) -> Tensor:
        calls.append(len(h))
        return (h + 0.01 * torch.rand(len(h), 1, dtype=DTYPE)).square().sum()

    reduction, h = Reduction(loss), rand(N, 3)
    torch.manual_seed(0)
    assert reduction.summed(h, h) and reduction.summed(h, h)
    assert calls == [N, 2 * N]
    after = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(3))


SOFT = {
    "probabilities": (nn.CrossEntropyLoss(), lambda h: h.softmax(1)),
    "of each unit": (nn.BCEWithLogitsLoss(), lambda h: h.sigmoid()),
    "values": (nn.MSELoss(), lambda h: h),
}


@pytest.mark.parametrize("name", SOFT)
def test_float_labels_are_compared_as_the_loss_compares_them(name: str) -> None:
    loss, predicted = SOFT[name]
    h, y = rand(N, 3), rand(N, 3, seed=2).softmax(1)
    assert torch.equal(tp.LabelTarget(beta=1.0)(h, y, loss).delta, y - predicted(h))


def test_a_loss_without_label_target_is_refused() -> None:
    h, y = rand(N, 3), rand(N, 3, seed=2)
    with pytest.raises(ValueError, match="needs labels, or values that the loss compares the output with"):
        tp.LabelTarget()(h, y, lambda h, y: (h - y).pow(4).mean() + h.exp().sum())


def test_labels_that_are_reached_or_not_finite_need_not_tell_how_they_are_compared() -> None:
    h = rand(4, 3)
    assert not tp.LabelTarget()(h, h.clone(), nn.MSELoss()).delta.any()
    spoilt = h.clone()
    spoilt[1] = torch.nan
    assert tp.LabelTarget()(spoilt, h, nn.MSELoss()).delta[1].isnan().all()
