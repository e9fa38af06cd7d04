"""The distribution that a loss is of: found by its gradient, its scale, and labels drawn from it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import targetprop as tp
from targetprop.batch import Batch
from targetprop.belief import Belief, find_belief
from targetprop.output_target import GradientStep


def _sequence_loss(z: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(z.flatten(0, 1), y.flatten())


def _classes(z: Tensor, y: Tensor, dim: int) -> Tensor:
    return -z.log_softmax(dim).gather(dim, y.unsqueeze(dim)).sum()


# name: loss, output, labels, kind, where the classes are, the sum of −log p
Case = tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...], str, str, int, Callable[[Tensor, Tensor], Tensor]]
CASES: dict[str, Case] = {
    "classes": (nn.CrossEntropyLoss(), (6, 5), "classes", "softmax", -1, lambda z, y: _classes(z, y, 1)),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), (6, 5), "classes", "softmax", -1, lambda z, y: _classes(z, y, 1)),
    "images": (nn.CrossEntropyLoss(), (4, 5, 3, 2), "positions", "softmax", 1, lambda z, y: _classes(z, y, 1)),
    "sequences": (_sequence_loss, (4, 7, 5), "sequences", "softmax", -1, lambda z, y: _classes(z, y, 2)),
    "pixels": (
        nn.BCEWithLogitsLoss(), (6, 5), "shares", "sigmoid", -1,
        lambda z, y: functional.binary_cross_entropy_with_logits(z, y, reduction="sum"),
    ),
    "values": (nn.MSELoss(), (6, 5), "values", "identity", -1, lambda z, y: 0.5 * (z - y).square().sum()),
}  # fmt: skip


def _labels(kind: str, z: Tensor) -> Tensor:
    if kind == "classes":
        return torch.randint(z.shape[1], (len(z),))
    if kind == "positions":
        return torch.randint(z.shape[1], (len(z), *z.shape[2:]))
    if kind == "sequences":
        return torch.randint(z.shape[2], z.shape[:2])
    return torch.rand_like(z) if kind == "shares" else torch.randn_like(z)


@pytest.mark.parametrize("name", CASES)
def test_the_distribution_of_a_loss_and_its_excess_are_found_in_its_gradient(name: str) -> None:
    loss, shape, labels, kind, dim, total = CASES[name]
    torch.manual_seed(0)
    z = torch.randn(shape, dtype=torch.double)
    y = _labels(labels, z)
    change = GradientStep(beta=0.1)(z, y, loss)
    belief = find_belief(z, y, change.gradient, Batch(len(z)))
    assert belief is not None and belief.kind == kind
    assert kind != "softmax" or belief.dim == dim
    least = -(torch.xlogy(y, y) + torch.xlogy(1 - y, 1 - y)).sum() if labels == "shares" else 0.0
    excess = belief.excess(z, change.gradient) / change.samples
    torch.testing.assert_close(excess / change.loss, (total(z, y) - least) / total(z, y))


def test_the_excess_over_smoothed_classes_is_the_loss_above_its_least() -> None:
    torch.manual_seed(0)
    z, y, loss = torch.randn(6, 5, dtype=torch.double), torch.randint(5, (6,)), nn.CrossEntropyLoss(label_smoothing=0.2)
    best = (0.8 * functional.one_hot(y, 5) + 0.04).log()
    change = GradientStep(beta=0.1)(z, y, loss)
    excess = Belief("softmax", -1, 1.0).excess(z, change.gradient) / change.samples
    torch.testing.assert_close(excess, loss(z, y) - loss(best, y))


def test_ignored_positions_and_smoothed_labels_do_not_hide_the_classes() -> None:
    torch.manual_seed(0)
    z, y = torch.randn(20, 5), torch.randint(5, (20,))
    y[::4] = -100
    for loss in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.05)):
        found = find_belief(z, y, GradientStep()(z, y, loss).gradient, Batch(20))
        assert found is not None and found.kind == "softmax"


@pytest.mark.parametrize(
    "belief", [Belief("softmax", -1, 1.0), Belief("sigmoid", -1, 1.0), Belief("identity", -1, 1.0)]
)
def test_what_is_drawn_has_the_hessian_as_its_second_moment(belief: Belief) -> None:
    z, count = torch.tensor([1.0, -0.5, 0.3], dtype=torch.double), 200_000
    s = belief.draw(z.expand(count, 3), Batch(count), torch.Generator().manual_seed(0))
    p = z.softmax(0) if belief.kind == "softmax" else z.sigmoid()
    hessian = {
        "softmax": p.diag() - p.outer(p),
        "sigmoid": (p * (1 - p)).diag(),
        "identity": torch.eye(3, dtype=torch.double),
    }[belief.kind]
    torch.testing.assert_close(s.mean(0), torch.zeros(3, dtype=torch.double), atol=1e-2, rtol=0.0)
    torch.testing.assert_close(s.T @ s / count, hessian, atol=1e-2, rtol=0.0)


def test_shares_of_classes_are_labels_too() -> None:
    torch.manual_seed(0)
    z, y = torch.randn(6, 5, dtype=torch.double), torch.rand(6, 5, dtype=torch.double).softmax(1)
    found = find_belief(z, y, GradientStep()(z, y, nn.CrossEntropyLoss()).gradient, Batch(6))
    assert found is not None and found.kind == "softmax"
    assert found.scale == pytest.approx(1.0)


def test_rows_that_the_network_is_sure_of_do_not_hide_the_classes() -> None:
    z, y = torch.zeros(8, 5), torch.arange(8) % 5
    z[torch.arange(8), y] = 20.0  # p − 1 rounds to 0 at the label, the other gradients do not
    z[0], y[0] = torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0]), 1
    found = find_belief(z, y, GradientStep()(z, y, nn.CrossEntropyLoss()).gradient, Batch(8))
    assert found is not None and found.kind == "softmax"
    assert found.scale == pytest.approx(1.0)


def test_a_loss_of_no_known_distribution_is_refused() -> None:
    torch.manual_seed(0)
    net, x, y = nn.Linear(3, 4), 5 * torch.randn(8, 3), torch.randint(4, (8,))
    engine = tp.TargetPropagation(net, nn.MultiMarginLoss(), example_input=x, method="kronecker")
    with pytest.raises(ValueError, match="draws labels from what the network believes"):
        engine.backward(x, y)


def test_a_squared_error_is_known_where_the_outputs_could_be_odds() -> None:
    z, loss = torch.linspace(0.2, 0.4, 12, dtype=torch.double).view(4, 3), nn.MSELoss()
    y = torch.zeros_like(z)
    change = GradientStep(beta=0.1)(z, y, loss)
    found = find_belief(z, y, change.gradient, Batch(4))  # odds that are nearly equal give nearly the same direction
    assert found is not None and found.kind == "identity"
    torch.testing.assert_close(found.excess(z, change.gradient) / change.samples, loss(z, y))
