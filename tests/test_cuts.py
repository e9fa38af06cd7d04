"""Where layers begin and end, what they are called, and that they are the model and can be repeated."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

import targetprop as tp
from cases import LOSSES, NETWORKS, TRANSPOSE, Network, backprop, gradients, modules, parameters, rand, relative, run
from one_layer import Function
from targetprop.layers import record_layers

CUTS = ["post-activation", "pre-activation"]


def block() -> nn.Sequential:
    maps = nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 3)
    return nn.Sequential(nn.Flatten(), maps[0], nn.LayerNorm(5), nn.Tanh(), maps[1], nn.PReLU(), maps[2], nn.ELU())


def named() -> nn.Sequential:
    inner = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    return nn.Sequential(OrderedDict(encoder=inner, more=tp.Residual(nn.Tanh(), nn.Linear(3, 3)), head=nn.Linear(3, 2)))


def twice(module: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), module, nn.Linear(4, 4), module, nn.Linear(4, 3))


LAYERS = {
    "maps first": (block(), CUTS[0], {"1": "flatten linear layer_norm tanh", "4": "linear prelu", "6": "linear elu"}),
    "maps last": (block(), CUTS[1], {"1": "flatten linear", "4": "layer_norm tanh linear", "6": "prelu linear elu"}),
    "names": (named(), CUTS[0], {"encoder.0": "linear tanh", "more.branch.1": "tanh linear add", "head": "linear"}),
    "one module twice": (twice(nn.Tanh()), CUTS[0], {"0": "linear tanh", "2": "linear tanh", "4": "linear"}),
    "a list": ([block()[:2], nn.Sequential(nn.ELU(), nn.ReLU())], CUTS[0], {"0": "flatten linear", "1": "elu relu"}),
    "a dictionary": ({"a": nn.Linear(4, 3), "b": nn.ReLU()}, CUTS[0], {"a": "linear", "b": "relu"}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_begin_and_end_as_the_cut_says(name: str) -> None:
    model, cut, expected = LAYERS[name]
    found = record_layers(model, torch.ones(2, 4), cut).layers
    calls = {layer.name: " ".join(call.name.strip("_") for call in layer.layer.segment.calls) for layer in found}
    assert calls == expected


def padded(x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(len(x), 6, dtype=x.dtype)
    out[:, 1:5] = x
    return out


WRITTEN = Network(lambda: nn.Sequential(nn.Linear(4, 4), Function(padded), nn.Linear(6, 3)), (4,))
RESIDUAL = Network(
    lambda: nn.Sequential(
        nn.Linear(4, 6),
        tp.Residual(nn.LayerNorm(6), nn.Linear(6, 8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 6)),
        tp.Residual(tp.Residual(nn.Tanh(), nn.Linear(6, 6)), nn.BatchNorm1d(6)),
        tp.Residual(nn.Linear(6, 5), nn.ELU(inplace=True), shortcut=nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.2))),
        nn.Linear(5, 3),
    ),
    (4,),
)


OWN = {"residual": RESIDUAL, "written into": WRITTEN}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", NETWORKS | OWN)
def test_layers_in_a_row_are_the_model_and_are_repeated_with_its_draws_and_statistics(name: str, cut: str) -> None:
    case = (NETWORKS | OWN)[name]
    model, again, x = case.build(), case.build(), case.batch()
    torch.manual_seed(4)
    record = record_layers(model, x, cut)
    y = x
    for layer in record.layers:
        layer.f(layer.x + 1)  # what is repeated leaves the pass as it was
        y, few = layer.f(y), layer.head(2)
        assert relative(layer.f(layer.x), layer.h) < 1e-13 and relative(few.f(few.x), layer.h[:2]) < 1e-13
        assert None not in layer.pull(layer.h, gradients=layer.parameters).gradients
    torch.manual_seed(4)
    expected = run(again, x).detach()
    assert relative(record.output, expected) < 1e-13 and relative(y, expected) < 1e-13
    for a, b in zip(modules(model), modules(again), strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    used = {id(p) for layer in record.layers for p in layer.layer.parameters()}
    assert used == {id(p) for p in parameters(model)}


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False)])
def test_on_other_inputs_batch_statistics_are_those_of_the_pass(norm: nn.Module) -> None:
    layer, other = record_layers([norm.double()], rand(6, 4)).layers[0], rand(6, 4, seed=1)
    mean, variance = layer.x.mean(0), layer.x.var(0, unbiased=False)
    assert relative(layer.f(other), ((other - mean) / (variance + norm.eps).sqrt()).detach()) < 1e-12


def shared() -> nn.Sequential:
    model = twice(nn.Tanh())
    model[2].weight = model[0].weight
    return model


def used_twice() -> nn.Sequential:
    linear = nn.Linear(4, 4)
    return nn.Sequential(linear, nn.Tanh(), linear, nn.Linear(4, 3))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("make", [shared, used_twice])
def test_layers_that_share_a_parameter_add_up_its_gradient(make, cut: str) -> None:
    torch.manual_seed(0)
    model, x, loss = make().double(), rand(6, 4), LOSSES["cross-entropy"]
    expected = backprop(model, loss.loss, x, loss.labels(6))
    method = tp.Method(decoder=TRANSPOSE, cut=cut, output_target=tp.GradientStep(1e-3))
    tp.TargetPropagation(model, loss.loss, example_input=x, method=method).backward(x, loss.labels(6))
    assert relative(gradients(model), expected) < 1e-10
