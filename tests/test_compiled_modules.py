"""Users may compile their own modules: the step is the same, and the baseline runs the compiled code."""

import pytest
import torch
from torch import nn

import targetprop as tp
from cases import DTYPE, rand

# PyTorch's compiler looks at the .grad of what it is given.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
X, Y = rand(12, 4, seed=1), torch.arange(12) % 3


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.map = nn.Linear(inputs, outputs)

    def forward(self, x):
        return torch.tanh(self.map(x))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(4, 8), Block(8, 8), nn.Linear(8, 3)).to(DTYPE)


def gradients(net: nn.Module, method: str) -> list[torch.Tensor]:
    engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=X, method=method, seed=0)
    engine.backward(X, Y)
    return [p.grad for p in net.parameters()]


@pytest.mark.parametrize("method", ["krylov", "dtp", "backprop"])
def test_modules_compiled_in_place_train_as_they_do_without(method: str) -> None:
    runs = []

    def count(graph, example):
        return lambda *values: (runs.append(graph), graph(*values))[1]

    plain = gradients(network(), method)
    net = network()
    for module in net:
        module.compile(backend=count)
    for expected, found in zip(plain, gradients(net, method), strict=True):
        torch.testing.assert_close(found, expected)
    assert bool(runs) == (method == "backprop")


@pytest.mark.parametrize("method", ["krylov", "dtp", "drl", "regularised"])
def test_compiled_copies_are_taken_as_what_was_compiled(method: str) -> None:
    plain = gradients(network(), method)
    net = network()
    net[1] = torch.compile(net[1], backend="eager")
    for model in (net, torch.compile(net, backend="eager")):
        net.zero_grad()
        for expected, found in zip(plain, gradients(model, method), strict=True):
            torch.testing.assert_close(found, expected)
