"""What went wrong with models once: batch norm in training, random modules, moving buffers, hooks, other sizes."""

import pickle
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import targetprop as tp
from cases import DTYPE, TRANSPOSE, rand, relative

CLASSES = torch.arange(32) % 4
CE = nn.CrossEntropyLoss()


class Drop(nn.Module):
    """Dropout as many public models have it."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5, self.training)


class Centre(nn.Module):
    """Takes a running mean away, which it moves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(width, dtype=DTYPE))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        return x - self.mean


class Squared(nn.ReLU):
    """Computes something else than its parent."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.relu(input) ** 2


def network(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 16), *between, nn.Linear(16, 4)).to(DTYPE)


def trained(net: nn.Module, x: Tensor, method: str = "l-drl", loss: Callable = CE) -> tp.TargetPropagation:
    engine = tp.TargetPropagation(net, loss, example_input=x, method=method, seed=0)
    for _ in range(60):
        engine.train_decoders(x)
    return engine


def gradients(net: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    return found


WITHOUT_PARAMETERS = [
    nn.ReLU(), nn.LeakyReLU(-0.3), nn.ELU(), nn.CELU(), nn.SELU(), nn.GELU(), nn.SiLU(), nn.Mish(), nn.Softplus(),
    nn.Tanh(), nn.Sigmoid(), nn.Hardtanh(), nn.Hardswish(), nn.Softsign(), nn.LogSigmoid(), nn.Tanhshrink(),
    nn.Softshrink(), nn.Hardshrink(), nn.Threshold(0.1, 0.0), nn.Softmax(1), nn.LogSoftmax(1), nn.Softmin(1),
    nn.RReLU(), nn.Dropout(0.3), nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.3), nn.Identity(), nn.GLU(),
    nn.AvgPool1d(2), nn.MaxPool1d(2), nn.LPPool1d(2, 2), nn.AdaptiveAvgPool1d(8), nn.AdaptiveMaxPool1d(8),
    nn.ChannelShuffle(4), nn.LocalResponseNorm(2), nn.ConstantPad1d((0, -8), 0.0),
]  # fmt: skip
WITH_PARAMETERS = [
    nn.PReLU(init=-0.3), nn.BatchNorm1d(16), nn.LayerNorm(16), nn.RMSNorm(16), nn.GroupNorm(4, 16),
    nn.BatchNorm1d(16, affine=False), Drop(), Centre(16), Squared(),
]  # fmt: skip


POOLS = (nn.AvgPool1d, nn.MaxPool1d, nn.LPPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d)
SHAPES = dict.fromkeys(POOLS, (1, 16)) | dict.fromkeys((nn.ChannelShuffle, nn.LocalResponseNorm), (16, 1))


@pytest.mark.parametrize("between", [*WITHOUT_PARAMETERS, *WITH_PARAMETERS], ids=lambda module: type(module).__name__)
def test_mirrors_give_the_gradient_whatever_stands_between_them(between: nn.Module) -> None:
    """In training mode, with the same random numbers; buffers move as in one ordinary forward pass."""
    x, between, shape = rand(32, 10), deepcopy(between).to(DTYPE), SHAPES.get(type(between))
    inner = [between] if shape is None else [nn.Unflatten(1, shape), between, nn.Flatten()]
    width = nn.Sequential(*deepcopy(inner))(rand(32, 16)).shape[1]
    net = network(*inner)
    net[-1] = nn.Linear(width, 4, dtype=DTYPE)
    engine = trained(net, x)
    twin = deepcopy(net)
    torch.manual_seed(5)
    engine.backward(x, CLASSES)
    torch.manual_seed(5)
    CE(twin(x), CLASSES).backward()
    assert (
        relative(torch.cat([g.flatten() for g in gradients(net)]), torch.cat([g.flatten() for g in gradients(twin)]))
        < 1e-3
    )
    for buffer, other in zip(net.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(buffer, other)


@pytest.mark.parametrize("method", ["l-drl", "krylov", "least-squares"])
def test_forward_hooks_see_each_batch_once_and_nothing_else(method: str) -> None:
    net, x, seen = network(nn.ReLU()), rand(32, 10), []
    net[2].register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    engine = tp.TargetPropagation(net, CE, example_input=x[:2], method=method)
    assert seen == []
    for _ in range(3):
        engine.backward(x, CLASSES)
    assert seen == [(32, 16)] * 3


@pytest.mark.parametrize("method", ["l-drl", "krylov", "least-squares"])
def test_hooks_after_accumulation_may_take_the_step(method: str) -> None:
    net, x = network(nn.ReLU()), rand(32, 10)
    optimizers = {p: torch.optim.SGD([p], lr=0.05) for p in net.parameters()}
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
    engine, losses = tp.TargetPropagation(net, CE, example_input=x, method=method), []
    for _ in range(4):
        net.zero_grad()
        losses.append(float(engine.backward(x, CLASSES).loss))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_penalties_on_parameters_reach_them() -> None:
    net, x = network(nn.ReLU()), rand(32, 10)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(output, y) + 0.1 * sum(p.abs().sum() for p in net.parameters())

    engine = trained(net, x, loss=loss)
    engine.backward(x, CLASSES)
    found = gradients(net)
    loss(net(x), CLASSES).backward()
    for gradient, expected in zip(found, gradients(net), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_the_layers_that_the_model_has_now_are_trained() -> None:
    net, x = network(nn.ReLU()), rand(32, 10)
    engine = trained(net, x)
    net[4] = nn.Linear(16, 4, dtype=DTYPE)
    report = engine.backward(x, CLASSES)
    torch.testing.assert_close(report.loss, CE(net(x), CLASSES).detach())
    assert net[4].weight.grad is not None
    net.append(nn.Linear(4, 4, dtype=DTYPE))
    torch.testing.assert_close(engine.backward(x, CLASSES).loss, CE(net(x), CLASSES).detach())
    assert net[5].weight.grad is not None


def test_batches_of_other_sizes_and_lengths_are_trained() -> None:
    net = nn.Sequential(
        nn.Conv1d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1),
        nn.Flatten(), nn.Linear(8, 4),
    ).to(DTYPE)  # fmt: skip
    engine = trained(net, rand(2, 3, 20))
    for n, length in ((8, 31), (5, 9), (2, 20)):
        x, y = rand(n, 3, length), CLASSES[:n]
        engine.backward(x, y)
        found = gradients(net)
        CE(net(x), y).backward()
        for gradient, expected in zip(found, gradients(net), strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_the_mean_over_samples_is_a_mean() -> None:
    net = nn.Sequential(nn.Linear(10, 4), nn.LogSoftmax(1)).to(DTYPE)
    x, y, loss = rand(32, 10), rand(32, 4, seed=1).softmax(1), nn.KLDivLoss(reduction="batchmean")
    tp.TargetPropagation(net, loss, example_input=x, method="l-drl").backward(x, y)
    found = gradients(net)
    loss(net(x), y).backward()
    for gradient, expected in zip(found, gradients(net), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_every_parameter_of_a_parametrised_layer_gets_a_gradient() -> None:
    net, x = network(nn.ReLU()), rand(32, 10)
    nn.utils.parametrizations.weight_norm(net[0])
    nn.utils.parametrizations.weight_norm(net[2])
    tp.TargetPropagation(net, CE, example_input=x, method="least-squares").backward(x, CLASSES)
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("method", ["l-drl", "krylov", "least-squares", "dtp"])
def test_a_pickled_engine_goes_on_as_the_original_does(method: str) -> None:
    net, x = network(nn.ReLU()), rand(32, 10)
    engine = tp.TargetPropagation(net, CE, example_input=x, method=method, seed=0)
    engine.backward(x, CLASSES)
    copied = pickle.loads(pickle.dumps(engine))
    for one in (engine, copied):
        one.model.zero_grad()
        one.backward(x, CLASSES)
    for gradient, other in zip(gradients(engine.model), gradients(copied.model), strict=True):
        assert torch.equal(gradient, other)


class Doubled(torch.autograd.Function):
    """Twice the input, whose gradient is tripled."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return 3 * grad


class Around(torch.autograd.Function):
    """Calls another one, whose backward pass does not count."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return Doubled.apply(x) + 1

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return 5 * grad


CUSTOM = {"called": lambda x: Doubled.apply(x), "kept": Doubled.apply, "nested": Around.apply}


@pytest.mark.parametrize("name", CUSTOM)
def test_backward_passes_of_autograd_functions_count_however_they_are_called(name: str) -> None:
    """With transposes of layers that are made again, .grad is that of back-propagation."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.out = nn.Linear(10, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(CUSTOM[name](torch.tanh(self.below(x))))

    torch.manual_seed(0)
    net, x = Net().to(DTYPE), rand(32, 10)
    method = tp.method("dtp", decoder=TRANSPOSE)
    tp.TargetPropagation(net, CE, example_input=x, method=method).backward(x, CLASSES)
    found = gradients(net)
    CE(net(x), CLASSES).backward()
    for gradient, expected in zip(found, gradients(net), strict=True):
        torch.testing.assert_close(gradient, expected)


class CrossAttention(nn.Module):
    """One packed weight, of which queries and keys use parts of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 4)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        query, key = torch.tanh(self.query(x[:, :2])), torch.tanh(self.key(x))
        return self.out(self.mix(query, key, key)[0].mean(1))


class Scaled(nn.Module):
    """Two weights of one shape that one module computes from its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.out = nn.Linear(6, 6), nn.Linear(6, 4)
        self.a, self.b = (nn.Parameter(torch.randn(6, 6)) for _ in range(2))
        self.scale = nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(functional.linear(torch.tanh(self.below(x.mean(1))), self.a * self.scale))
        return self.out(torch.tanh(functional.linear(h, self.b * self.scale)))


class Tied(nn.Module):
    """A weight that is used as it is and transposed: one mirror, which two steps at once would overshoot."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.tied, self.out = nn.Linear(6, 8), nn.Linear(8, 5, bias=False), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.tied(torch.tanh(self.below(x.mean(1)))))
        return self.out(torch.tanh(functional.linear(h, self.tied.weight.T)))


@pytest.mark.parametrize("kind", [CrossAttention, Scaled, Tied])
@pytest.mark.parametrize("warmup", [0.0, 4.0])
def test_every_part_of_a_weight_learns(kind: type[nn.Module], warmup: float) -> None:
    torch.manual_seed(0)
    net, x = kind().to(DTYPE), rand(32, 5, 6)
    method = tp.method("l-drl", decoder=tp.WeightMirror(warmup=warmup))
    engine = tp.TargetPropagation(net, CE, example_input=x, method=method, seed=0)
    for _ in range(60):
        engine.train_decoders(x)
    engine.backward(x, CLASSES)
    found = gradients(net)
    CE(net(x), CLASSES).backward()
    for gradient, expected in zip(found, gradients(net), strict=True):
        assert float((gradient - expected).norm()) < 1e-3 * float(expected.norm()) + 1e-12
