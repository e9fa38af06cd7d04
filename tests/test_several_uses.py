"""Maps that a pass uses several times, against the same map used once, and against autograd."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import DTYPE, rand
from targetprop.belief import Belief
from targetprop.updates import kronecker

SAMPLES, PLACES, WIDTH = 12, 3, 4
EXACT = tp.Exact(w=0.0, damping=1.0)
UNBOUNDED = tp.Kronecker(observe=2, every=2, limit=1e9)
UPDATES = [tp.LeastSquares(), UNBOUNDED]


class Twin(nn.Module):
    """A map of every place of a sample, in one call or one place after the other."""

    def __init__(self, map_: nn.Module, *, apart: bool, pooled: bool = True) -> None:
        super().__init__()
        self.map, self.last, self.apart, self.pooled = map_, nn.Linear(WIDTH, 3), apart, pooled

    def forward(self, x: Tensor) -> Tensor:
        h = torch.stack([self.map(place) for place in x.unbind(1)], 1) if self.apart else self.map(x)
        h = torch.tanh(h)
        return self.last(h.mean(1) if self.pooled else h.flatten(0, 1))


class Times(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Folded(nn.Module):
    """A convolution of the signals of a sample, shape ``(n, signals, channels, times)`` or ``(n, channels, times)``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x.flatten(0, -3) if x.dim() == 4 else x)
        return torch.tanh(z).mean(-1).unflatten(0, x.shape[:-2])


MAPS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(2, WIDTH), (SAMPLES, PLACES, 2)),
    "product": (Times, (SAMPLES, PLACES, 2)),
    "rows": (lambda: nn.Linear(2, WIDTH), (SAMPLES, PLACES, 5, 2)),
    "convolution": (Folded, (SAMPLES, PLACES, 2, 6)),
}


class Pooled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x)).mean(-2)


def train(net: nn.Module, x: Tensor, labels: int, update: Any) -> Tensor:
    """Take steps from the same start, and give all parameters."""
    for number, p in enumerate(net.to(DTYPE).parameters()):
        p.data = (rand(p.numel(), seed=number) / 2).view(p.shape)
    method = tp.method("kronecker", decoder=EXACT, update=update)
    engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x, method=method, seed=0)
    optimiser = torch.optim.SGD(net.parameters(), 1.0)
    for step in range(4):
        net.zero_grad()
        engine.backward(x, torch.arange(labels) * (step + 1) % 3)
        optimiser.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize(
    ("update", "settled"),
    [
        (tp.LeastSquares(), 100),
        (UNBOUNDED, 100),
        (UNBOUNDED, 2),
        (replace(UNBOUNDED, rows=2 * SAMPLES), 100),  # of every second place
    ],
    ids=["least-squares", "kronecker", "settled", "few rows"],
)
@pytest.mark.parametrize("case", MAPS)
def test_uses_one_by_one_are_as_one_use_of_all_places(
    case: str, settled: int, update: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kronecker, "_SETTLED", settled)
    monkeypatch.setattr(Belief, "draw", lambda _, output, *rest: rand(*output.shape, seed=2))
    make, shape = MAPS[case]
    x = rand(*shape, seed=1)

    def net(*, apart: bool) -> nn.Module:
        return Twin(Pooled(make()) if case == "rows" else make(), apart=apart)

    found, expected = (train(net(apart=apart), x, SAMPLES, update) for apart in (True, False))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_changes_of_several_uses_count_as_those_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Belief, "draw", lambda _, output, *rest: rand(*output.shape, seed=2))
    update, x = tp.Kronecker(decrease=1e9, limit=1e-3), rand(SAMPLES, PLACES, 2, seed=1)
    moved = []
    for apart in (True, False):
        torch.manual_seed(0)
        map_ = nn.Linear(2, WIDTH)
        net, method = Twin(map_, apart=apart).to(DTYPE), tp.method("kronecker", decoder=EXACT, update=update)
        engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x, method=method, seed=0)
        engine.backward(x, torch.arange(SAMPLES) % 3)
        assert map_.weight.grad is not None and map_.bias.grad is not None
        moved.append(float((x @ map_.weight.grad.T + map_.bias.grad).square().mean().sqrt()))
    assert moved == pytest.approx([1e-3 / 2 / PLACES**0.5, 1e-3 / 2])  # two maps share the limit


@pytest.mark.parametrize("update", UPDATES, ids=["least-squares", "kronecker"])
def test_a_label_for_each_place(update: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Belief, "draw", lambda _, output, *rest: rand(*output.shape, seed=2))
    x, labels = rand(SAMPLES, PLACES, 2, seed=1), SAMPLES * PLACES
    found, expected = (
        train(Twin(nn.Linear(2, WIDTH), apart=apart, pooled=False), x, labels, update) for apart in (True, False)
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


class Some(nn.Module):
    """A map of some places of some samples, in two calls or in one."""

    def __init__(self, *, apart: bool) -> None:
        super().__init__()
        self.map, self.last, self.apart = nn.Linear(2, WIDTH), nn.Linear(WIDTH, 3), apart

    def forward(self, x: Tensor) -> Tensor:
        rows, owners = x.flatten(0, 1)[3:-8], torch.arange(x.shape[:2].numel())[3:-8] // PLACES  # 25 rows of 12 samples
        calls = (slice(0, 12), slice(12, None)) if self.apart else (slice(None),)
        h = torch.tanh(torch.cat([self.map(rows[call]) for call in calls]))
        return self.last(h.new_zeros(len(x), WIDTH).index_add(0, owners, h))


@pytest.mark.parametrize("update", UPDATES, ids=["least-squares", "kronecker"])
def test_rows_that_are_not_shared_out_evenly_count_as_samples(update: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Belief, "draw", lambda _, output, *rest: rand(*output.shape, seed=2))
    x = rand(SAMPLES, PLACES, 2, seed=1)
    found, expected = (train(Some(apart=apart), x, SAMPLES, update) for apart in (True, False))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        for _ in range(PLACES):
            h = torch.tanh(self.map(h))
        return h


def test_a_map_that_feeds_itself_is_one_regression_of_all_its_steps() -> None:
    torch.manual_seed(0)
    net, x, y = Recurrent().to(DTYPE), rand(SAMPLES, WIDTH), rand(SAMPLES, WIDTH, seed=2)
    update = tp.LeastSquares(damping=0.1, shrinkage=0.0, decay=0.0, every=1, unit_scale=False, bounded=False)
    method = tp.Method(decoder=EXACT, update=update)
    tp.TargetPropagation(net, nn.MSELoss(), example_input=x, method=method, seed=0).backward(x, y)

    h, inputs, outputs = x, [], []
    for _ in range(PLACES):
        inputs.append(torch.cat([h, torch.ones(SAMPLES, 1, dtype=DTYPE)], 1))
        outputs.append(net.map(h))
        h = torch.tanh(outputs[-1])
    asked = torch.autograd.grad(nn.functional.mse_loss(h, y), outputs)
    a, dz = torch.cat(inputs).detach(), torch.cat(asked)
    moment = a.T @ a / len(a)
    damped = moment + 0.1 * moment.diagonal().mean() * torch.eye(WIDTH + 1, dtype=DTYPE)
    expected = dz.T @ a / PLACES @ torch.linalg.inv(damped)  # per place
    assert net.map.weight.grad is not None and net.map.bias.grad is not None
    found = torch.cat([net.map.weight.grad, net.map.bias.grad.unsqueeze(1)], 1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map, self.middle = nn.Linear(2, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.middle(torch.tanh(self.map(x)))) @ self.map.weight


def test_a_weight_that_is_used_as_two_maps_is_not_solved_for() -> None:
    torch.manual_seed(0)
    net, x, y = Tied().to(DTYPE), rand(SAMPLES, 2), rand(SAMPLES, 2, seed=2)
    method = tp.Method(decoder=EXACT, update=tp.LeastSquares(unit_scale=False))
    tp.TargetPropagation(net, nn.MSELoss(), example_input=x, method=method, seed=0).backward(x, y)
    (expected,) = torch.autograd.grad(nn.functional.mse_loss(net(x), y), [net.map.weight])
    assert net.map.weight.grad is not None
    torch.testing.assert_close(net.map.weight.grad, expected, rtol=1e-6, atol=1e-9)


def test_a_weight_that_the_loss_uses_too_is_not_solved_for() -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(2, WIDTH), nn.Linear(WIDTH, WIDTH)
    net, x = nn.Sequential(first, nn.Tanh(), last, nn.Tanh()).to(DTYPE), rand(SAMPLES, 2)

    def loss(h: Tensor, y: None) -> Tensor:
        return h.square().mean() + last(h).square().mean()

    method = tp.Method(decoder=EXACT, update=tp.LeastSquares(unit_scale=False))
    tp.TargetPropagation(net, loss, example_input=x, method=method, seed=0).backward(x, None)
    (expected,) = torch.autograd.grad(loss(net(x), None), [last.weight])
    assert last.weight.grad is not None
    torch.testing.assert_close(last.weight.grad, expected, rtol=1e-6, atol=1e-9)
