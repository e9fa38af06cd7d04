"""Models as people write them, under methods that learn inverses or take derivatives of layers, and what that promises.

The output layer, and what the loss reaches beside the layers, is trained by the gradient itself. With transposes of
whole layers everything is, where batch statistics are held: a layer that is made again keeps those of the pass.
"""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map

import targetprop as tp
from cases import TRANSPOSE
from targetprop.layers.inputs import call
from zoo import CASES, Case
from zoo.case import floats, integers

METHODS = ["dtp", "learned-inverse", "drl", "ddtp-linear", "regularised"]
LEARNED = METHODS[:-1]
LARGE = {"resnet", "vgg", "densenet", "unet", "mobilenet", "convnext", "vit", "transformer_encoder", "gpt_written"}
PARTLY_USED = "dataclass_output"  # its loss takes less than what it returns, which no decoder can know of
TRANSPOSES = tp.method("dtp", decoder=TRANSPOSE, output_target=tp.GradientStep(1e-3))


class Hidden(nn.Module):
    """Dropout and batch norm inside of a module that is no container."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.norm, self.drop = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.norm(self.map(x)).relu_())


class Shared(nn.Module):
    """One map, used twice, and written over in between."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.map(x)
        h += 1
        return self.map(h.tanh_())


class First(nn.Module):
    """Takes the first of several."""

    def forward(self, x: tuple[Tensor, Any]) -> Tensor:
        return x[0]


class TwoInputs(nn.Module):
    """Two inputs that meet in attention."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mix = nn.Linear(4, 6), nn.Linear(3, 6), nn.MultiheadAttention(6, 2, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        query, key = self.a(x).tanh().unsqueeze(1), self.b(z).tanh()
        return self.out(self.mix(query, key, key)[0].squeeze(1))


def around(*between: nn.Module) -> Any:
    return lambda: nn.Sequential(nn.Linear(4, 6), *deepcopy(between), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def _odd(name: str, make: Any, inputs: Any = lambda: floats(6, 4)) -> Case:
    return Case(name, make, inputs, lambda: integers(3, 6), functional.cross_entropy)


ODD = (
    _odd("relu in place", around(nn.ReLU(inplace=True))),
    _odd("dropout in place", around(nn.Dropout(0.4, inplace=True), nn.LeakyReLU(0.2))),
    _odd("alpha dropout", around(nn.SELU(), nn.AlphaDropout(0.3))),
    _odd("feature dropout", around(nn.Unflatten(1, (3, 2)), nn.Dropout1d(0.4), nn.Flatten())),
    _odd("hidden dropout and norm", around(Hidden())),
    _odd("shared", around(nn.Tanh(), Shared())),
    _odd("spectral norm", around(nn.Tanh(), nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)))),
    _odd("a tuple on the way", around(nn.Tanh(), nn.RNN(6, 6), First())),
    _odd("two inputs", TwoInputs, lambda: (floats(6, 4), floats(6, 2, 3, seed=3))),
)
MODELS = {case.name: case for case in (*CASES, *ODD)}


def double(t: Any) -> Any:
    return t.double() if isinstance(t, Tensor) and t.is_floating_point() else t


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.to_dense() for name, p in model.named_parameters() if p.grad is not None}


def step(case: Case, method: str | tp.Method, *, held: bool) -> tuple[tp.TargetPropagation, nn.Module, nn.Module]:
    """Take one step by a method and one by back-propagation, from the same state; both leave the same state."""
    torch.manual_seed(0)
    model, x, y = case.make().double().train(), tree_map(double, case.inputs()), case.labels()
    for module in model.modules() if held else ():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    reference = deepcopy(model)
    torch.manual_seed(1)
    loss = case.loss(call(reference, x), y)
    loss.backward()
    random = torch.get_rng_state()
    engine = tp.TargetPropagation(model, case.loss, example_input=x, method=method, seed=0)
    torch.manual_seed(1)
    report = engine.backward(x, y)
    assert report.skipped is None and torch.allclose(report.loss, loss.detach(), rtol=1e-12)
    assert torch.equal(torch.get_rng_state(), random), "random numbers are drawn as in one forward pass"
    for buffer, other in zip(model.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(buffer, other)
    return engine, model, reference


def exact(engine: tp.TargetPropagation) -> list[str]:
    """Name the parameters of the last layer alone, and those beside the layers."""
    *below, last = (set(layer.segment.parameters) for layer in engine.network.layers)
    elsewhere = set().union(*below)
    named = [name for name, _ in engine.network.model.named_parameters()]
    return [name for name in named if name not in elsewhere and (name in last or name not in elsewhere | last)]


@pytest.mark.parametrize(
    ("name", "method"), [(name, m) for name in MODELS for m in (METHODS if name not in LARGE else METHODS[:1])]
)
def test_a_step_trains_every_parameter_and_the_output_layer_rightly(name: str, method: str) -> None:
    if name == PARTLY_USED and method in LEARNED:
        return
    engine, model, reference = step(MODELS[name], method, held=False)
    found, expected = gradients(model), gradients(reference)
    assert found.keys() == expected.keys()
    size = float(torch.stack([g.norm() for g in expected.values()]).norm())
    for key in exact(engine):
        if key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-6, atol=1e-9 * size, msg=key)
    assert all(torch.isfinite(g).all() for g in found.values())


@pytest.mark.parametrize("name", [name for name in MODELS if name != PARTLY_USED])
def test_transposes_of_layers_give_the_gradients_of_back_propagation(name: str) -> None:
    _, model, reference = step(MODELS[name], TRANSPOSES, held=True)
    found, expected = gradients(model), gradients(reference)
    assert found.keys() == expected.keys()
    size = float(torch.stack([g.norm() for g in expected.values()]).norm())
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-6, atol=1e-9 * size, msg=key)


@pytest.mark.parametrize("method", LEARNED)
def test_a_loss_that_takes_less_than_the_model_returns_is_refused_in_a_sentence(method: str) -> None:
    with pytest.raises(ValueError, match=r"let (the model|it) return what the loss takes"):
        step(MODELS[PARTLY_USED], method, held=False)
