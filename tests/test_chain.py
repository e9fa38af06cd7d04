"""The chain: where layers begin and end, that their composition is the model, and what is refused."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import NETWORKS, parameters, rand, run
from targetprop.layers.forward_pass import run_forward


def kinds(chain: tp.Chain) -> dict[str, list[str]]:
    return {layer.name: [type(m).__name__ for m in layer.modules] for layer in network.layers}


def block() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Dropout(0.1), nn.Linear(5, 4), nn.PReLU(),
        nn.Linear(4, 3), nn.Softplus(),
    )  # fmt: skip


def test_post_activation_layers_start_at_each_map() -> None:
    assert kinds(tp.build_chain(block())) == {
        "1": ["Flatten", "Linear", "LayerNorm", "Tanh", "Dropout"],
        "5": ["Linear", "PReLU"],
        "7": ["Linear", "Softplus"],
    }


def test_pre_activation_layers_end_at_each_map() -> None:
    assert kinds(tp.build_chain(block(), cut="pre-activation")) == {
        "1": ["Flatten", "Linear"],
        "5": ["LayerNorm", "Tanh", "Dropout", "Linear"],
        "7": ["PReLU", "Linear", "Softplus"],
    }


def test_names_follow_the_users_model() -> None:
    net = nn.Sequential(OrderedDict(encoder=nn.Sequential(nn.Linear(4, 3), nn.Tanh()), head=nn.Linear(3, 2)))
    assert tp.build_chain(net).names == ["encoder.0", "head"]
    assert tp.build_chain([net[0], net[1]]).names == ["0", "1"]
    assert tp.build_chain({"a": net[0], "b": net[1]}).names == ["a", "b"]
    assert len(tp.build_chain(net)) == 2


def test_a_module_used_twice_is_applied_twice() -> None:
    tanh = nn.Tanh()
    chain = tp.build_chain(nn.Sequential(nn.Linear(4, 3), tanh, nn.Linear(3, 2), tanh))
    assert kinds(chain) == {"0": ["Linear", "Tanh"], "2": ["Linear", "Tanh"]}


@pytest.mark.parametrize("cut", ["post-activation", "pre-activation"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_composition_is_the_model_and_replay_is_the_forward_pass(name: str, cut: str) -> None:
    case = NETWORKS[name]
    model, x = case.build(), case.batch()
    chain = tp.build_chain(model, cut=cut)
    torch.manual_seed(4)
    record = run_forward(network, x, keep_inner=True)
    torch.manual_seed(4)
    assert torch.allclose(record.output, run(model, x), rtol=1e-14, atol=1e-15)
    for layer in record.layers:
        assert torch.allclose(layer.f(layer.x), layer.h, rtol=1e-13, atol=1e-14)
        assert torch.equal(layer.inner[-1], layer.y)
        few = layer.head(2)
        assert torch.allclose(few.f(few.x), layer.h[:2], rtol=1e-13, atol=1e-14)
    assert {id(p) for layer in network.layers for p in layer.parameters()} == {id(p) for p in parameters(model)}
    assert not any(layer.x.requires_grad for layer in record.layers)


@pytest.mark.parametrize("make", [lambda: nn.BatchNorm1d(4), lambda: nn.BatchNorm1d(4, track_running_stats=False)])
def test_batch_statistics_are_those_of_the_forward_pass(make) -> None:
    norm = make().double()
    record = run_forward(tp.build_chain([norm, nn.Linear(4, 2).double()]), rand(6, 4))
    layer, other = record.layers[0], rand(6, 4, seed=1)
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    mean, variance = layer.x.mean(0), layer.x.var(0, unbiased=False)
    expected = (other - mean) / (variance + norm.eps).sqrt()
    assert torch.allclose(layer.f(other), expected, rtol=1e-12, atol=1e-13)
    assert all(torch.equal(before[k], v) for k, v in norm.state_dict().items())


def test_a_replay_rule_makes_a_random_module_repeatable() -> None:
    class Jitter(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    def record(module: nn.Module, x: Tensor) -> tuple[Tensor, tp.ReplayState]:
        y = module(x)
        return y, tp.ReplayState(per_sample=((y - x).detach(),))

    tp.register_replay(Jitter, record, lambda module, x, side: x + side.per_sample[0])
    with pytest.raises(ValueError, match="Jitter has a replay rule already"):
        tp.register_replay(Jitter, record, lambda module, x, side: x)
    layer = run_forward(tp.build_chain([nn.Linear(3, 3), Jitter()]), torch.ones(4, 3)).layers[1]
    assert torch.equal(layer.f(layer.x), layer.h)
    few = layer.head(2)
    assert torch.equal(few.f(few.x), layer.h[:2])


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@pytest.mark.parametrize("inner", [nn.Dropout(0.5), nn.BatchNorm1d(3)])
def test_a_block_that_hides_what_cannot_be_repeated_is_named(inner: nn.Module) -> None:
    chain, x = tp.build_chain([nn.Linear(3, 3), Residual(inner)]), torch.ones(4, 3)
    with pytest.raises(ValueError, match=f"layer 1: Residual holds {type(inner).__name__}, .*register_replay"):
        run_forward(network, x)
    inner.eval()
    layer = run_forward(network, x).layers[1]
    assert torch.equal(layer.f(layer.x), layer.h)


def shared() -> nn.Sequential:
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    return nn.Sequential(a, nn.Tanh(), b)


def twice() -> nn.Sequential:
    a = nn.Linear(3, 3)
    return nn.Sequential(a, nn.Tanh(), a)


class Odd(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


BAD = [
    (shared, ValueError, "layers 0 and 2 share a parameter; .* give the layers parameters of their own"),
    (twice, ValueError, "layers 0 and 2 share a parameter"),
    (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True)),
        ValueError,
        r"layer 0: ReLU\(inplace=True\) .* set inplace=False",
    ),
    (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.RReLU()),
        ValueError,
        "layer 0: RReLU draws new random numbers .* use Dropout",
    ),
    (lambda: nn.Sequential(nn.Tanh()), ValueError, r"no trainable parameter; call requires_grad_\(True\)"),
    (lambda: nn.Sequential(), ValueError, "the model has no layers"),
    (lambda: [], ValueError, "the model has no layers"),
    (lambda: nn.Linear(2, 2), TypeError, "cannot see the layers of Linear: pass an nn.Sequential"),
    (lambda: Odd(nn.Linear(2, 2)), TypeError, "cannot see the layers of Odd"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_models_that_cannot_be_served_are_named(make, error, message: str) -> None:
    with pytest.raises(error, match=message):
        tp.build_chain(make())


def test_an_unknown_cut_is_named() -> None:
    with pytest.raises(ValueError, match="cut must be one of post-activation, pre-activation; got 'middle'"):
        tp.build_chain(block(), cut="middle")
