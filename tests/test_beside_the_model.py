"""What a step touches beside the parameters of the model: parameters of the loss, state of Python, shared memory."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import targetprop as tp


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(8, 4, dtype=torch.float64), torch.randint(0, 3, (8,))


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()


class Margin(nn.Module):
    """A loss with a learned scale and head, as for metric learning or uncertainty weights."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.zeros(3))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(self.scale * h + self.shift, y)


@pytest.mark.parametrize("method", ["l-drl", "least-squares", "dtp", "iterated", "backprop"])
def test_parameters_of_the_loss_have_their_gradient(method: str) -> None:
    x, y = data()
    net, loss = dense(), Margin().double()
    other, own = deepcopy(net), deepcopy(loss)
    own(other(x), y).backward()
    engine = tp.TargetPropagation(net, loss, example_input=x, method=method, seed=0)
    engine.backward(x, y)
    for p, q in zip(loss.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    loss.shift.requires_grad_(False)
    loss.zero_grad()
    engine.backward(x, y)  # frozen later
    assert loss.scale.grad is not None and loss.shift.grad is None


@pytest.mark.parametrize("method", ["l-drl", "dtp"])
def test_a_trained_tensor_that_a_loss_closes_over_has_its_gradient(method: str) -> None:
    x, y = data()
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    net = dense()
    (expected,) = torch.autograd.grad(functional.cross_entropy(scale * net(x), y), scale)
    engine = tp.TargetPropagation(
        net, lambda h, y: functional.cross_entropy(scale * h, y), example_input=x, method=method
    )
    engine.backward(x, y)
    torch.testing.assert_close(scale.grad, expected)


class Recording(nn.Module):
    """Counts its calls, lists what it saw, and draws from Python's random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = nn.Linear(6, 6), 0
        self.seen: list[Tensor] = []

    def forward(self, h: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(h.detach())
        return self.inner(h)


@pytest.mark.parametrize("method", ["l-drl", "least-squares", "dtp"])
def test_what_modules_count_and_list_is_moved_once_a_step(method: str) -> None:
    x, y = data()
    module = Recording()
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), module, nn.Tanh(), nn.Linear(6, 3)).double()
    seen = module.seen
    assert tp.check(net, x, method).supported
    engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x, method=method, seed=0)
    assert (module.calls, seen) == (0, [])
    for step in (1, 2):
        engine.backward(x, y)
        assert (module.calls, len(module.seen)) == (step, step) and module.seen is seen
    torch.testing.assert_close(seen[0], torch.tanh(net[0](x)))


def write_view(h: Tensor) -> Tensor:
    h[:, :3].mul_(2.0)
    return h


def add_to_slice(h: Tensor) -> Tensor:
    h[:, :2] += torch.tanh(h[:, 2:4])
    return torch.sin(h)


def write_half(h: Tensor) -> Tensor:
    low, high = h[:, :3], h[:, 3:]
    low.add_(high)
    return h * torch.cat([low, high], 1)


@pytest.mark.parametrize("write", [write_view, add_to_slice, write_half])
def test_a_layer_that_writes_through_a_view_is_repeated_as_it_ran(write: Callable[[Tensor], Tensor]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(write(self.b(torch.tanh(self.a(x)))))

    x, _ = data()
    engine = tp.TargetPropagation(Net().double(), nn.CrossEntropyLoss(), example_input=x, method="dtp", seed=0)
    for layer in engine.record(x).inverted:
        torch.testing.assert_close(layer.f(layer.x), layer.h, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_weights_that_share_their_storage_have_mirrors_of_their_own(kind: Any) -> None:
    """As kernels for GPUs lay recurrent weights out, and `vector_to_parameters` any."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.rnn, self.head = nn.Linear(4, 3), kind(3, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(torch.tanh(self.stem(x)))[0][:, -1])

    torch.manual_seed(0)
    apart, x, y = Net(), torch.randn(8, 4, 4), torch.randint(0, 3, (8,))
    shared = deepcopy(apart)
    own = list(shared.parameters())
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(own).detach(), own)
    assert len({p.untyped_storage().data_ptr() for p in own}) == 1
    banks = []
    for net in (apart, shared):
        engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x, method="l-drl", seed=0)
        for _ in range(3):
            engine.backward(x, y)
        banks.append(engine.bank.state_dict())
    for p, q in zip(apart.parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    assert banks[0].keys() == banks[1].keys()
    for key, mirror in banks[0].items():
        torch.testing.assert_close(mirror, banks[1][key])
