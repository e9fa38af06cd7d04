"""Modules that nobody registered: differentiable ones by damped least squares, black boxes by learned decoders."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import DTYPE, TRANSPOSE, backprop, gradients, parameters, rand, relative
from targetprop import diagnostics
from targetprop.decoders.bank import FALLBACK_DAMPING
from targetprop.decoders.linearised import LinearisedDecoder
from targetprop.inversion import sample_norm
from targetprop.layers.black_box import is_black_box
from targetprop.layers.forward_pass import run_forward


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * self.gate(x).sigmoid()


class BilinearAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scores, self.out = nn.Linear(4, 4, bias=False), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.scores(x) @ x.mT / 2).softmax(-1) @ x)


class FusedAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        return nn.functional.scaled_dot_product_attention(x, x, x).squeeze(1)


UNKNOWN = {
    "gated": (Gated, (4,)),
    "attention": (BilinearAttention, (3, 4)),
    "fused attention": (FusedAttention, (3, 4)),
}


def bound(make, inputs: tuple[int, ...], n: int = 6) -> tuple:
    torch.manual_seed(0)
    model = [nn.Linear(4, 4).to(DTYPE), make().to(DTYPE)]
    x = rand(n, *inputs)
    engine = tp.TargetPropagation(model, nn.MSELoss(), example_input=x, method="dtp", seed=0)
    assert engine.kinds() == {"1": f"linearised, w=1, damping={FALLBACK_DAMPING:g}"}
    record = run_forward(engine.network, x)
    return engine.bank.inverse(record.layers[1]), record.layers[1]


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_module_is_inverted_by_damped_least_squares(name: str) -> None:
    g, layer = bound(*UNKNOWN[name])
    change = rand(*layer.h.shape, seed=1)
    J = diagnostics.layer_jacobian(layer)
    eye = torch.eye(J.shape[2], dtype=DTYPE)
    exact = torch.linalg.solve(J.mT @ J + FALLBACK_DAMPING * eye, J.mT @ change.flatten(1).unsqueeze(2)).squeeze(2)
    assert relative(g.difference(layer.h, change).flatten(1), exact) < 1e-10


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6])
def test_each_sample_is_solved_to_the_tolerance_alone(tolerance: float) -> None:
    _, layer = bound(Gated, (4,))
    change = rand(*layer.h.shape, seed=1) * torch.logspace(-6, 3, len(layer.h), dtype=DTYPE).unsqueeze(1)
    decoder = LinearisedDecoder(1.0, FALLBACK_DAMPING, tolerance=tolerance)
    found = decoder.bind(layer).difference(layer.h, change)
    J = diagnostics.layer_jacobian(layer)
    rhs = (J.mT @ change.unsqueeze(2)).squeeze(2)
    left = rhs - (J.mT @ (J @ found.unsqueeze(2))).squeeze(2) - FALLBACK_DAMPING * found
    assert (sample_norm(left) <= tolerance * sample_norm(rhs) * (1 + 1e-6)).all()
    few = decoder.bind(layer.head(2)).difference(layer.h[:2], change[:2])
    assert torch.allclose(few, found[:2], rtol=1e-9)


def test_one_unknown_module_leaves_its_whole_layer_to_the_fallback() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Gated(), nn.ELU(), nn.Linear(5, 2)).to(DTYPE)
    engine = tp.TargetPropagation(model, nn.MSELoss(), example_input=rand(2, 4), method="dtp")
    kinds = engine.kinds()
    assert kinds["2"].startswith("linearised") and kinds["4"] == "learned"
    x, y = rand(5, 4), rand(5, 2, seed=1)
    tp.TargetPropagation(model, nn.MSELoss(), example_input=x, method=tp.Method(decoder=TRANSPOSE)).backward(x, y)
    found = gradients(model)
    model.zero_grad()
    assert relative(found, backprop(model, nn.MSELoss(), x, y)) < 1e-11


# Black boxes


class HardThreshold(nn.Module):
    """No derivative: autograd sees a comparison."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, 1.0, -1.0).to(x.dtype)


class Sign(nn.Module):
    """A derivative that is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sign()


class Round(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.round()


class Winners(nn.Module):
    """The two largest values of a sample as ones."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x).scatter(-1, x.topk(2, dim=-1).indices, 1.0)


class NumPy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(x.detach().numpy()))


class BareNumPy(nn.Module):
    """It cannot even be called on what requires a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(x.numpy()))


class Embedded(nn.Module):
    """A threshold before parameters of its own, which do get a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.sign(x))


class Dead(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 1e6).relu()


BOXES = [HardThreshold, Sign, Round, Winners, NumPy, BareNumPy]
OTHERS = [nn.ReLU, nn.Tanh, nn.Hardtanh, Dead, FusedAttention, lambda: nn.MaxPool1d(2), nn.Identity]


@pytest.mark.parametrize("values", [torch.zeros(2, 3, 8), rand(2, 3, 8).float()], ids=["zeros", "random"])
def test_black_boxes_are_told_from_flat_spots(values: Tensor) -> None:
    assert [is_black_box(make(), values) for make in [*BOXES, Embedded]] == [True] * 7
    assert [is_black_box(make(), values) for make in OTHERS] == [False] * len(OTHERS)
    zero = nn.Linear(8, 8)
    nn.init.zeros_(zero.weight)
    assert not is_black_box(zero, values), "a map that is constant has a derivative of zero"
    assert not is_black_box(nn.Embedding(3, 4), torch.zeros(2, 3, dtype=torch.long))


def network(box: nn.Module, inputs: int = 4, classes: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 12), nn.Tanh(), nn.Linear(12, 8), box, nn.Linear(8, classes))


@pytest.mark.parametrize("make", BOXES)
def test_without_a_decoder_the_box_and_the_remedy_are_named(make) -> None:
    name = make.__name__
    with pytest.raises(ValueError, match=rf"layer 4: {name} cannot be inverted .* register a decoder .*decoders={{'4'"):
        tp.TargetPropagation(
            network(make()), nn.MSELoss(), example_input=torch.ones(2, 4), method=tp.method("dtp", cut="pre-activation")
        )
    with pytest.raises(ValueError, match=f"layer 2: {name} lets no gradient through .*cut='pre-activation'"):
        tp.TargetPropagation(network(make()), nn.MSELoss(), example_input=torch.ones(2, 4), method="dtp")
    with pytest.raises(ValueError, match=f"layer 4: {name} .* choose a method whose decoders are learned"):
        method = tp.method("regularised", cut="pre-activation")
        tp.TargetPropagation(network(make()), nn.MSELoss(), example_input=torch.ones(2, 4), method=method)


def test_a_box_inside_a_block_is_named_too() -> None:
    model = [nn.Linear(4, 4), tp.Residual(nn.Linear(4, 4), Sign(), nn.Linear(4, 4)), nn.Linear(4, 2)]
    with pytest.raises(ValueError, match="layer 1: Sign lets no gradient through to the parameters before it"):
        tp.TargetPropagation(model, nn.MSELoss(), example_input=torch.ones(2, 4), method="dtp")
    with pytest.raises(ValueError, match=r"1\.branch\.1: sign has no derivative, so nothing below it would learn"):
        tp.TargetPropagation(model, nn.MSELoss(), example_input=torch.ones(2, 4))
    model[1] = tp.Residual(Sign(), nn.Linear(4, 4))
    assert (
        tp.TargetPropagation(model, nn.MSELoss(), example_input=torch.ones(2, 4), method="dtp").kinds()["1"]
        == "identity"
    )


def test_a_box_with_parameters_that_learn_needs_only_a_decoder() -> None:
    model, x = [nn.Linear(4, 8), Embedded(), nn.Linear(8, 2)], torch.ones(2, 4)
    with pytest.raises(ValueError, match="layer 1: Embedded cannot be inverted"):
        tp.TargetPropagation(model, nn.MSELoss(), example_input=x, method="dtp")
    tp.TargetPropagation(model, nn.MSELoss(), example_input=x, method="dtp", decoders={"1": nn.Linear(8, 8)})


def train(model: nn.Sequential, engine: tp.TargetPropagation, x: Tensor, y: Tensor) -> float:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        engine.backward(x, y)
        optimizer.step()
    return nn.functional.cross_entropy(model(x), y).item()


OBJECTIVES = {
    "denoising": tp.Denoising(noise=1.0, lr=5e-3),
    "difference reconstruction": tp.DifferenceReconstruction(w=0.0, damping=1.0, noise=1.0, lr=5e-3),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("box", [HardThreshold, NumPy])
def test_a_learned_decoder_carries_the_signal_through_a_box(box, objective: str) -> None:
    x = rand(256, 16).float()
    y = x[:, :3].argmax(1)
    method = tp.Method(cut="pre-activation", decoder=OBJECTIVES[objective])
    reached = {}
    for name, recipe in (("backprop", "backprop"), ("targets", method)):
        model = network(box(), 16, 3)
        decoders = {} if name == "backprop" else {"4": nn.Linear(3, 8)}
        engine = tp.TargetPropagation(
            model, nn.CrossEntropyLoss(), example_input=x, method=recipe, decoders=decoders, seed=0
        )
        before = [p.detach().clone() for p in parameters(model[:3])]
        reached[name] = train(model, engine, x, y)
        moved = [not torch.equal(a, b) for a, b in zip(before, parameters(model[:3]), strict=True)]
        assert all(moved) if name == "targets" else not any(moved)
    assert reached["targets"] < 0.4 * reached["backprop"]


def test_the_decoder_of_a_threshold_is_its_average_slope() -> None:
    # E[ε sign(h + ε)] / s² = 2 φ(h/s)/s: at h = 0 and s = 1, √(2/π).
    model = {"below": nn.Linear(6, 6), "box": Sign()}
    objective = tp.DifferenceReconstruction(w=0.0, damping=1.0, noise=1.0, updates=400, lr=1e-2)
    decoder = nn.Linear(6, 6, bias=False)
    engine = tp.TargetPropagation(
        model, nn.MSELoss(), example_input=torch.zeros(2, 6), method=tp.Method(decoder=objective), seed=0,
        decoders={"box": decoder},
    )  # fmt: skip
    nn.init.zeros_(model["below"].bias)
    for rate in (1e-2, 1e-3):
        for group in engine.decoder_optimizer.param_groups:
            group["lr"] = rate
        engine.train_decoders(torch.zeros(512, 6))
    assert (decoder.weight - math.sqrt(2 / math.pi) * torch.eye(6)).abs().max() < 0.05
