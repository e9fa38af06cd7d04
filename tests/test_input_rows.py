"""The rows whose moment is the factor of the inputs, against the gradients of single samples by autograd."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import DTYPE, rand
from targetprop.batch import Batch
from targetprop.belief import Belief
from targetprop.updates import input_rows as made
from targetprop.updates import kronecker
from targetprop.updates.asked import Common
from targetprop.updates.input_rows import input_rows
from targetprop.updates.one_use import OneUse
from targetprop.updates.sides import Sides

SAMPLES, FIRST = 6, "0"


class Mean(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.mean(1)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution": (lambda: nn.Conv2d(2, 5, 3, padding=1, stride=2), (2, 7, 5)),
    "convolution without bias": (lambda: nn.Conv1d(2, 5, 3, bias=False), (2, 9)),
    "tokens": (lambda: nn.Linear(3, 5), (7, 3)),
    "one position": (lambda: nn.Linear(3, 5), (3,)),
}


def regression(case: str, *, labels: int) -> tuple[OneUse, Tensor]:
    """Make what a map is asked, and the gradient of each sample and position by autograd, ``(n, t, k, d)``."""
    make, shape = CASES[case]
    torch.manual_seed(0)
    layer, x = make().to(DTYPE), rand(SAMPLES, *shape, seed=1)
    engine = tp.TargetPropagation(nn.Sequential(layer, nn.Tanh()), nn.MSELoss(), example_input=x, method="l-drl")
    (use,) = engine.record(x).uses()
    z = layer(x)
    felt = rand(*z.shape, seed=2)
    parts = (z * felt).movedim(1 if "convolution" in case else -1, -1).reshape(SAMPLES, -1, 5).sum(-1)
    found = []
    for part in parts.flatten():
        gradients = torch.autograd.grad(part, list(layer.parameters()), retain_graph=True)
        found.append(torch.cat([g.flatten(1) if g.dim() > 1 else g.unsqueeze(1) for g in gradients], 1))
    common = Common(Batch(SAMPLES), 1.0, labels=labels)
    return OneUse(use, torch.zeros_like(z), common, felt), torch.stack(found).unflatten(0, parts.shape)


@pytest.mark.parametrize("case", [case for case in CASES if case != "one position"])
def test_with_one_label_the_positions_of_a_sample_are_summed(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, gradients = regression(case, labels=1)
    g = gradients.sum(1)
    expected = torch.einsum("nkd,nke->de", g, g)
    drawn = [input_rows(asked, DTYPE, step, 1000, 1) for step in range(400)]
    assert drawn[0].shape == (4 * SAMPLES, expected.shape[0])
    mean = torch.stack([rows.T @ rows for rows in drawn]).mean(0) / 4
    assert float((mean - expected).norm() / expected.norm()) < 0.1
    torch.testing.assert_close(input_rows(asked, DTYPE, 3, 1, 1), drawn[3])  # sample by sample
    monkeypatch.setattr(made, "_COMBINATIONS", 5)  # no fewer than outputs: nothing is drawn
    rows = input_rows(asked, DTYPE, 0, 1000, 1)
    torch.testing.assert_close(rows.T @ rows, expected)


@pytest.mark.parametrize(("case", "labels"), [("one position", 1), ("tokens", 7), ("convolution", 12)])
def test_else_rows_are_the_inputs(case: str, labels: int) -> None:
    asked, _ = regression(case, labels=labels)
    torch.testing.assert_close(input_rows(asked, DTYPE, 0, 1000, 1), asked.a)
    if labels > 1:
        torch.testing.assert_close(input_rows(asked, DTYPE, 0, 1000, 2), asked.some_a(slice(None), 2))


@pytest.mark.parametrize(("labels", "independent"), [(1, SAMPLES), (3, 3 * SAMPLES), (100, 7 * SAMPLES)])
def test_no_more_rows_are_independent_than_there_are_labels(labels: int, independent: int) -> None:
    asked, _ = regression("tokens", labels=labels)
    assert asked.independent == independent


@pytest.mark.parametrize(
    ("kind", "dim", "shape", "labels"),
    [
        ("softmax", -1, (4, 10), 1), ("softmax", -1, (4, 7, 10), 7), ("softmax", 1, (4, 10, 3, 5), 15),
        ("softmax", -1, (0, 7, 10), 7), ("sigmoid", -1, (4, 12), 1), ("identity", -1, (4,), 1),
        ("softmax", -1, (28, 10), 7), ("softmax", 1, (8, 10, 3), 6),
        ("softmax", -1, (10, 10), 3),
    ],
)  # fmt: skip
def test_labels_of_a_sample(kind: Any, dim: int, shape: tuple[int, ...], labels: int) -> None:
    assert Belief(kind, dim, 1.0).labels(torch.zeros(shape), Batch(min(4, shape[0]))) == labels


@pytest.mark.parametrize("classes", ["of samples", "of positions"])
def test_a_step_sums_positions_where_samples_have_one_label(classes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    end = [Mean()] if classes == "of samples" else []
    first, last = nn.Linear(3, 4), nn.Linear(4, 2)
    net = nn.Sequential(first, nn.Tanh(), *end, last).to(DTYPE)
    x = rand(SAMPLES, 7, 3, seed=1)
    output = net(x)
    drawn, y = rand(*output.shape, seed=2), torch.zeros(output.shape[:-1], dtype=torch.long)
    monkeypatch.setattr(Belief, "draw", lambda *_: drawn)

    def loss(h: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(h.flatten(0, -2), y.flatten())

    method = tp.method("kronecker", decoder=tp.Exact(w=0.0, damping=1.0))
    engine = tp.TargetPropagation(net, loss, example_input=x, method=method, seed=0)
    engine.backward(x, y)
    sides = engine._parts.update_state[FIRST + "/weight"]  # pyright: ignore[reportPrivateUsage]
    assert isinstance(sides, Sides)

    z = first(x)
    (felt,) = torch.autograd.grad(net[1:](z), z, drawn)
    a = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    if classes == "of samples":
        g = torch.einsum("ntk,ntd->nkd", felt, a)
        expected = torch.einsum("nkd,nke->de", g, g) / (SAMPLES * 4)  # four outputs, four rows
    else:
        expected = torch.einsum("ntd,nte->de", a, a) / (SAMPLES * 7)
    torch.testing.assert_close(sides.inputs.moment, expected)


class Layout(nn.Module):
    """The same maps at all positions of a sample, in one of several layouts of the same numbers."""

    def __init__(self, layout: str, *, pooled: bool) -> None:
        super().__init__()
        self.layout, self.pooled = layout, pooled
        self.first, self.second, self.last = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        h = {"samples first": x, "time first": x.transpose(0, 1), "folded": x.flatten(0, 1)}[self.layout]
        h = torch.tanh(self.second(torch.tanh(self.first(h))))
        if self.layout == "time first":
            h = h.transpose(0, 1)
        if self.pooled:
            return self.last(h.reshape(n, -1, 8).mean(1))
        return self.last(h).reshape(-1, 3)  # with a row for each label, as losses like them


class Channels(nn.Module):
    """A convolution of the signals of a recording, one by one or all signals at once."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.folded = layout == "folded"
        self.conv = nn.Conv1d(2, 4, 3) if self.folded else nn.Conv2d(2, 4, (1, 3))
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:  # shape (n, 2, signals, times)
        h = x.transpose(1, 2).flatten(0, 1) if self.folded else x
        h = torch.tanh(self.conv(h)).mean(-1)
        return self.last(h.reshape(len(x), -1, 4).mean(1) if self.folded else h.mean(2))


def train(net: nn.Module, x: Tensor, labels: int, rows: int) -> Tensor:
    """Take steps from the same start in any layout, and give all parameters."""
    for number, p in enumerate(net.to(DTYPE).parameters()):
        p.data = (rand(p.numel(), seed=number) / 2).view(p.shape)
    method = tp.method(
        "kronecker", decoder=tp.Exact(w=0.0, damping=1.0), update=tp.Kronecker(rows=rows, observe=2, every=2)
    )
    engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x, method=method, seed=0)
    for step in range(6):
        net.zero_grad()
        engine.backward(x, torch.arange(labels) * (step + 1) % 3)
        with torch.no_grad():
            for p in net.parameters():
                p -= p.grad
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("settled", [2, 100])
@pytest.mark.parametrize("rows", [12, 4096], ids=["few rows", "all rows"])
@pytest.mark.parametrize("pooled", [True, False], ids=["one label", "a label for each position"])
@pytest.mark.parametrize("layout", ["time first", "folded"])
def test_a_step_does_not_depend_on_where_positions_are(
    layout: str, pooled: bool, rows: int, settled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kronecker, "_SETTLED", settled)
    x, labels = rand(40, 7, 3, seed=1), 40 if pooled else 280
    found, expected = (train(Layout(name, pooled=pooled), x, labels, rows) for name in (layout, "samples first"))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("settled", [2, 100])
def test_a_step_does_not_depend_on_how_signals_are_passed(settled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kronecker, "_SETTLED", settled)
    x = rand(12, 2, 5, 8, seed=1)
    found, expected = (train(Channels(layout), x, 12, 4096) for layout in ("folded", "at once"))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
