"""Calls without derivative and modules that count as one call: what is refused, what learns, and what is left alone."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import DTYPE, parameters, rand, relative
from one_layer import Function
from targetprop.decoders import registered, registry


class Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sign()


class NumPy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(x.detach().numpy()))


class NoGrad(nn.Module):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return x.tanh()


class Mixed(nn.Module):
    """A map and then values alone."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.map(x).detach().numpy())


class Hidden(Mixed):
    """A module without gradient that is no part of the model."""

    def forward(self, x: Tensor) -> Tensor:
        return self.map(NumPy()(x))


BOXES = [lambda: Function(torch.round), Sign, NumPy, NoGrad]
CUTS = ["post-activation", "pre-activation"]


def around(*boxes: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), *boxes, nn.Linear(5, 3)).to(DTYPE)


def build(model: nn.Module, method: str | tp.Method = "dtp", **more) -> tp.TargetPropagation:
    return tp.TargetPropagation(model, nn.MSELoss(), example_input=rand(6, 4), method=method, seed=0, **more)


# What is refused

FLAT = "1: {} has no derivative, so nothing below it would learn; let an autograd function pass"
OPAQUE = "1: {} lets no gradient through, so nothing below it would learn; choose a method whose decoders are learned"
NAMES = [FLAT.format("round"), FLAT.format("sign"), *map(OPAQUE.format, ("NumPy", "NoGrad"))]


@pytest.mark.parametrize("method", ["krylov", "l-drl", "gait", "regularised"])
@pytest.mark.parametrize(("box", "message"), [*zip(BOXES, NAMES, strict=True)])
def test_methods_that_go_down_by_derivatives_name_the_box(box, message: str, method: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(around(box()), method)


REFUSED = [
    (
        lambda: [nn.Sequential(*around()[:1]), nn.Sequential(nn.Linear(5, 5, dtype=DTYPE), NumPy())],
        "layer 1: 1.1 lets no gradient through to the parameters before it",
    ),
    (lambda: around(tp.Residual(nn.Linear(5, 5), Sign(), nn.Linear(5, 5))), "layer 1.branch: 1.branch.1 lets no gradi"),
    (
        lambda: around(Mixed()),
        "1 lets no gradient through to parameters of its own; move them to a module before it, or",
    ),
    (lambda: around(Hidden()), "1: NumPy lets no gradient through, .*; make it a part of the model"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_no_decoder_helps_is_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(make())


@pytest.mark.parametrize("method", ["krylov", "l-drl", "gait", "dtp"])
def test_a_box_beside_is_no_obstacle(method: str) -> None:
    model = around(Function(lambda x, gate: x * gate(x), NoGrad()))
    build(model, method).backward(rand(6, 4), rand(6, 3, seed=1))
    assert all(p.grad.norm() > 1e-3 for p in parameters(model))


# What learns


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("boxes", [[box()] for box in BOXES] + [[NumPy(), nn.ReLU(), NoGrad(), nn.Sequential(Sign())]])
def test_targets_pass_a_box_unchanged(boxes: list[nn.Module], cut: str) -> None:
    model, x, y = around(*boxes), rand(6, 4), rand(6, 3, seed=1)
    engine = build(model, tp.Method(decoder=tp.Denoising(updates=0), cut=cut))
    assert engine.kinds() == {str(len(boxes) + 1): "learned"}
    engine.backward(x, y)
    V, _ = engine.bank.parameters()
    change = 2 * (model(x) - y).detach() / y.numel()
    assert relative(model[0].weight.grad, (change @ V.detach().T).T @ x) < 1e-10
    assert relative(model[-1].weight.grad, change.T @ model[:-1](x).detach()) < 1e-10


METHODS = ["tp", "dtp", "sdtp", "drl", "ddtp-linear", "learned-inverse", "fw-dtp", tp.Method(decoder=tp.Ridge())]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("box", [Sign, NumPy])
def test_every_method_of_learned_decoders_reaches_the_layers_below(box: type[nn.Module], method) -> None:
    model, x = around(nn.Tanh(), nn.Linear(5, 5), box()), rand(6, 4)
    engine = tp.TargetPropagation(model, nn.CrossEntropyLoss(), example_input=x, method=method, seed=0)
    engine.backward(x, torch.arange(6) % 3)
    assert all(p.grad.norm() > 1e-3 for p in parameters(model))


def test_layers_below_a_box_learn_what_backpropagation_cannot() -> None:
    x, reached = rand(128, 16).float(), []
    y = x[:, :3].argmax(1)
    for method in ("backprop", tp.Method(decoder=tp.Denoising(noise=1.0, lr=1e-2))):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 8), NumPy(), nn.Linear(8, 3))
        engine = tp.TargetPropagation(model, nn.CrossEntropyLoss(), example_input=x, method=method, seed=0)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(100):
            optimizer.zero_grad()
            loss = engine.backward(x, y).loss
            optimizer.step()
        reached.append(float(loss))
    assert reached[1] < 0.4 * reached[0]


def test_the_decoder_of_a_threshold_is_its_average_slope() -> None:
    # E[ε sign(h + ε)] / s² = 2 φ(h/s)/s: at h = 0 and s = 1, √(2/π).
    objective = tp.DifferenceReconstruction(w=0.0, damping=1.0, noise=1.0, updates=200, lr=2e-2)
    below, decoder, x = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), torch.zeros(512, 6)
    nn.init.zeros_(below.bias)
    model, given = (
        {"below": below, "box": Sign()},
        {"decoders": {"box": decoder}, "method": tp.Method(decoder=objective)},
    )
    engine = tp.TargetPropagation(model, nn.MSELoss(), example_input=x, seed=0, **given)
    for rate in (2e-2, 1e-3):
        engine.decoder_optimizer.param_groups[0]["lr"] = rate
        engine.train_decoders(x)
    assert (decoder.weight - math.sqrt(2 / math.pi) * torch.eye(6)).abs().max() < 0.05


# Classes that users give a decoder


@pytest.fixture
def register() -> Iterator:
    """Register decoders, and forget them afterwards."""
    before = dict(registry._BUILDERS)
    yield tp.register_decoder
    registry._BUILDERS.clear()
    registry._BUILDERS.update(before)


Q = torch.linalg.qr(rand(5, 5, seed=3))[0]


class Turn(nn.Module):
    """A rotation that may learn."""

    def __init__(self, learns: bool) -> None:
        super().__init__()
        self.matrix = nn.Parameter(Q.clone(), requires_grad=learns)

    def forward(self, x: Tensor) -> Tensor:
        h = x @ self.matrix.T
        return h.chunk(1)[0]


class TurnValues(Turn):
    """The same by NumPy."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() @ self.matrix.detach().numpy().T)


class Back(nn.Module):
    """The transpose of a rotation."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix.detach().clone())

    def forward(self, y: Tensor) -> Tensor:
        return y @ self.matrix


TURNS = [(Turn, True, "0 1 2"), (Turn, False, "0 2"), (TurnValues, False, "0 2")]


@pytest.mark.parametrize(("box", "learns", "names"), TURNS)
def test_an_own_class_is_one_call_and_is_decoded_by_its_builder(register, box, learns: bool, names: str) -> None:
    seen = []

    @register(Turn)
    def build_back(module: nn.Module, x: Tensor, y: Tensor, style: str) -> nn.Module:
        seen.append((type(module), torch.equal(module(x), y), style))
        return Back(module.matrix)

    model, x, y = around(box(learns)), rand(6, 4), rand(6, 3, seed=1)
    objective = tp.DifferenceReconstruction(w=0.0, damping=1.0, updates=0, activation="inverse")
    engine = build(model, tp.Method(decoder=objective, cut="pre-activation"))
    assert engine.network.names == names.split() and seen == [(box, True, "inverse")]
    (V, _), W = engine.bank.parameters(), model[-1].weight.detach()
    V.data = W.T
    engine.backward(x, y)
    change = 2 * (model(x) - y).detach() / y.numel()
    assert relative(model[0].weight.grad, (change @ W @ Q).T @ x) < 1e-10
    if learns:
        assert relative(model[1].matrix.grad, (change @ W).T @ model[0](x).detach()) < 1e-10


def test_a_class_is_registered_once_and_serves_the_classes_derived_from_it(register) -> None:
    builder = register(Turn)(lambda module, x, y, style: nn.Identity())
    assert Turn in registered()
    assert registry.find_builder(TurnValues(False)) is registry.find_builder(Turn(False)) is builder
    assert registry.find_builder(nn.Linear(2, 2)) is None
    with pytest.raises(ValueError, match="Turn has a decoder already; derive a class"):
        register(Turn)


class Messy(nn.Module):
    """Draws random numbers, moves statistics and lets, or does not let, gradients through."""

    def __init__(self, opaque: bool) -> None:
        super().__init__()
        self.norm, self.drop, self.opaque = nn.BatchNorm1d(5, affine=False), nn.Dropout(0.5), opaque

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.opaque):
            return self.drop(self.norm(x)) + torch.rand_like(x)


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("method", ["dtp", "drl", "learned-inverse"])
def test_a_step_draws_and_counts_and_calls_hooks_as_one_pass_does(register, method: str, opaque: bool) -> None:
    if not opaque:
        register(Messy)(lambda module, x, y, style: nn.Identity())
    model, same, calls = around(Messy(opaque)), around(Messy(opaque)), []
    engine = build(model, tp.method(method, cut="pre-activation"))
    for module in (model[1], model[1].drop):
        module.register_forward_hook(lambda module, args, out: calls.append(module))
    x, y = rand(8, 4, seed=5), rand(8, 3, seed=6)
    torch.manual_seed(7)
    expected, state = same(x).detach(), torch.get_rng_state()
    torch.manual_seed(7)
    report = engine.backward(x, y)
    assert calls == [model[1].drop, model[1]]
    assert torch.equal(report.output, expected) and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), same.buffers(), strict=True))
    torch.manual_seed(7)
    layer = engine.record(x).layers[1]
    torch.manual_seed(8)
    state = torch.get_rng_state()
    assert torch.equal(layer.f(layer.x), layer.h) and torch.equal(layer.f(layer.x[:3]), layer.h[:3])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    other = model[1](layer.x + 1)  # the noise is the same, and the norm forgets a shift
    assert relative(layer.f(layer.x + 1), model[2](other).detach()) < 1e-12
