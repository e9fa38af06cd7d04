"""Networks, losses, decoders and inversions as data: a test takes the cases it needs and adds only its assertion."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import targetprop as tp
from targetprop.layers import Record
from targetprop.targets import Targets, propagate

DTYPE = torch.float64


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Draw a float64 normal tensor from a seed of its own."""
    return torch.randn(*shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Network:
    """A network, how it is cut and what it eats."""

    make: Callable[[], Any]
    inputs: tuple[int, ...]
    outputs: int = 3
    cut: str = "post-activation"
    train: bool = True

    def build(self, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        model = self.make()
        for module in modules(model):
            module.to(DTYPE).train(self.train)
            for norm in module.modules():
                if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)):
                    _roughen(norm, seed)
        return model

    def batch(self, n: int = 5, seed: int = 1) -> Tensor:
        return rand(n, *self.inputs, seed=seed)


def _roughen(norm: nn.Module, seed: int) -> None:
    """Give a norm gains, biases and statistics that matter."""
    for i, tensor in enumerate((*norm.parameters(), *norm.buffers())):
        if tensor.is_floating_point():
            tensor.data.add_(rand(*tensor.shape, seed=seed + i).abs() * 0.5)


def modules(model: Any) -> list[nn.Module]:
    """List the modules of any kind of model."""
    if isinstance(model, nn.Module):
        return [model]
    return list(model.values() if isinstance(model, dict) else model)


def run(model: Any, x: Tensor) -> Tensor:
    """Call a model of any kind as the user would."""
    for module in modules(model):
        x = module(x)
    return x


def parameters(model: Any) -> list[nn.Parameter]:
    """List the parameters of any kind of model."""
    return [p for module in modules(model) for p in module.parameters()]


def _mlp(*activations: nn.Module, widths: tuple[int, ...] = (4, 6, 5, 3)) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b, activation in zip(widths[:-1], widths[1:], (*activations, nn.Identity()), strict=True):
        layers += [nn.Linear(a, b), activation]
    return nn.Sequential(*layers[:-1])


def _repeated() -> nn.Sequential:
    tanh = nn.Tanh()
    return nn.Sequential(nn.Linear(4, 5), tanh, nn.Linear(5, 5), tanh, nn.Linear(5, 3))


def _sequence() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3))


def _pooled() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.Tanh(), nn.MaxPool2d(2, 1),
        nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


NETWORKS: dict[str, Network] = {
    "tanh": Network(lambda: _mlp(nn.Tanh(), nn.Tanh()), (4,)),
    "elu": Network(lambda: _mlp(nn.ELU(), nn.ELU()), (4,)),
    "leaky": Network(lambda: _mlp(nn.LeakyReLU(0.3), nn.LeakyReLU(0.3)), (4,)),
    "gelu": Network(lambda: _mlp(nn.GELU(), nn.SiLU()), (4,)),
    "pre-activation": Network(lambda: _mlp(nn.Tanh(), nn.ELU()), (4,), cut="pre-activation"),
    "one activation used twice": Network(_repeated, (4,)),
    "one layer": Network(lambda: nn.Sequential(nn.Linear(4, 3)), (4,)),
    "no bias": Network(
        lambda: nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)), (4,)
    ),
    "layer norm": Network(
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)),
        (4,),
    ),
    "batch norm in eval": Network(
        lambda: nn.Sequential(
            nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ELU(), nn.Linear(5, 3)
        ),
        (4,),
        train=False,
    ),
    "dropout": Network(
        lambda: nn.Sequential(
            nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 8), nn.Dropout(0.3), nn.ELU(), nn.Linear(8, 3)
        ),
        (4,),
    ),
    "flatten": Network(
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Unflatten(1, (2, 3)), nn.Flatten(), nn.Linear(6, 3)
        ),
        (2, 2),
    ),
    "nested": Network(
        lambda: nn.Sequential(
            nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.Tanh(), nn.Linear(5, 5))), nn.ELU(), nn.Linear(5, 3)
        ),
        (4,),
    ),
    "list": Network(
        lambda: [nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5)), nn.Tanh(), nn.Linear(5, 3)], (4,)
    ),
    "dictionary": Network(
        lambda: {"first": nn.Linear(4, 5), "second": nn.Sequential(nn.Tanh(), nn.Linear(5, 3))}, (4,)
    ),
    "sequences": Network(_sequence, (2, 3)),
    "convolutions": Network(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2),
            nn.Tanh(),
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ELU(),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
        (2, 6, 6),
    ),
    "max pool": Network(_pooled, (2, 6, 6)),
    "max pool, pre-activation": Network(_pooled, (2, 6, 6), cut="pre-activation"),
    "batch norm 2d in eval": Network(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Conv2d(4, 4, 3),
            nn.GroupNorm(2, 4),
            nn.ELU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        (2, 6, 6),
        train=False,
    ),
}


def invertible(activation: Callable[[], nn.Module] = nn.Tanh, width: int = 3, depth: int = 3) -> nn.Sequential:
    """Build a network whose layers are all well-conditioned bijections of one width."""
    layers: list[nn.Module] = []
    for i in range(depth):
        linear = nn.Linear(width, width).to(DTYPE)
        orthogonal = torch.linalg.qr(rand(width, width, seed=10 + i))[0]
        linear.weight.data = orthogonal @ torch.diag(torch.linspace(0.7, 1.3, width, dtype=DTYPE))
        linear.bias.data = 0.1 * rand(width, seed=20 + i)
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class LossCase:
    """A loss and labels that fit an output of three units."""

    loss: Any
    labels: Callable[[int], Tensor] = field(default=lambda n: rand(n, 3, seed=2))


def _classes(n: int) -> Tensor:
    return torch.arange(n) % 3


LOSSES: dict[str, LossCase] = {
    "cross-entropy": LossCase(nn.CrossEntropyLoss(), _classes),
    "cross-entropy, weights": LossCase(
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5], dtype=DTYPE)), _classes
    ),
    "cross-entropy, smoothed": LossCase(nn.CrossEntropyLoss(label_smoothing=0.2), _classes),
    "squared error": LossCase(nn.MSELoss()),
    "squared error, sum": LossCase(nn.MSELoss(reduction="sum")),
    "binary cross-entropy": LossCase(nn.BCEWithLogitsLoss(), lambda n: (rand(n, 3, seed=2) > 0).to(DTYPE)),
    "a function": LossCase(lambda h, y: ((h - y) ** 4).sum(1).mean()),
}

TRANSPOSE = tp.Exact(w=0.0, damping=1.0)
INVERSE = tp.Exact(w=1.0, damping=0.0)

RULES: dict[str, Any] = {
    "direct": tp.Direct(),
    "difference": tp.Difference(),
    "input-space": tp.InputSpace(steps=60),
    "input-space, half steps": tp.InputSpace(steps=60, alpha=0.5),
    "input-space, Anderson": tp.InputSpace(steps=60, anderson=3),
    "output-space": tp.OutputSpace(steps=60),
    "output-space, Anderson": tp.OutputSpace(steps=60, anderson=3),
    "output-space, not differential": tp.OutputSpace(steps=60, differential=False),
    "krylov": tp.Krylov(steps=4),
    "regularised": tp.Regularised(steps=60, alpha=0.2, damping=0.05),
}


def gradients(model: Any) -> Tensor:
    """Collect all gradients in one vector, zeros where there is none."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters(model)])


def backprop(model: Any, loss: Any, x: Tensor, y: Tensor, seed: int = 0) -> Tensor:
    """Take the gradient by ``loss.backward()``, leaving ``.grad`` empty."""
    torch.manual_seed(seed)
    loss(run(model, x), y).backward()
    found = gradients(model)
    for p in parameters(model):
        p.grad = None
    return found


def relative(a: Tensor, b: Tensor) -> float:
    """Relative distance of two tensors."""
    return float((a.detach() - b).norm() / b.detach().norm())


def targets(
    engine: tp.TargetPropagation, x: Tensor, delta: Tensor | Callable[[Record], Tensor]
) -> tuple[Record, Targets]:
    """Carry a change of the output down as the engine would, without training or filling anything."""
    record, method = engine.record(x), engine.method
    delta = delta(record) if callable(delta) else delta
    with torch.no_grad():
        return record, propagate(record, engine.bank, delta, method.inversion, method.propagation, measure=True)
