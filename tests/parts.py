"""Parts of models, ``(n, 6) → (n, 6)``, as people write them; hypothesis draws models from them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

WIDTH = 6


class Function(nn.Module):
    """A function between modules."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, h: Tensor) -> Tensor:
        return self.function(h, *self.children())


def linear(inputs: int = WIDTH, outputs: int = WIDTH, **more: Any) -> nn.Linear:
    return nn.Linear(inputs, outputs, **more)


class SquaredReLU(nn.ReLU):
    """Computes something else than its parent."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.relu(input) ** 2


class CosineLinear(nn.Linear):
    """A product of directions."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(functional.normalize(input), functional.normalize(self.weight), self.bias)


class Standardised(nn.Linear):
    """A weight that is standardised at every call."""

    def forward(self, input: Tensor) -> Tensor:
        w = (self.weight - self.weight.mean(1, keepdim=True)) / (self.weight.std(1, keepdim=True) + 0.1)
        return functional.linear(input, w, self.bias)


class LoRA(nn.Module):
    """A frozen map beside one of low rank."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.a, self.b = linear(), nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)
        self.base.requires_grad_(False)

    def forward(self, h: Tensor) -> Tensor:
        return self.base(h) + 2 * self.b(self.a(h))


class Gains(nn.Module):
    """A gain and a shift for each value."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.rand(WIDTH) + 0.5), nn.Parameter(torch.randn(WIDTH))

    def forward(self, h: Tensor) -> Tensor:
        return h * self.gain + self.shift


class Positive(nn.Module):
    """Makes a parameter positive."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.softplus(x)


class Sign(torch.autograd.Function):
    """The sign, whose gradient passes where its input is small."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad * (ctx.saved_tensors[0].abs() <= 1)


class TwoOutputs(torch.autograd.Function):
    """Sine and cosine."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        return x.sin(), x.cos()

    @staticmethod
    def backward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return a * x.cos() - b * x.sin()


class Scaled(torch.autograd.Function):
    """Takes a parameter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, scale = ctx.saved_tensors
        return grad * scale, (grad * x).sum(0)


class Noise(nn.Module):
    """Adds noise while training."""

    def forward(self, h: Tensor) -> Tensor:
        return h + 0.3 * torch.randn_like(h) if self.training else h


class DropPath(nn.Module):
    """Drops a branch for whole samples."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(linear(), nn.Tanh())

    def forward(self, h: Tensor) -> Tensor:
        return h + self.branch(h) * (torch.rand(len(h), 1) < 0.6)


class LayerDrop(nn.Module):
    """Leaves whole layers out, as drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear() for _ in range(3))

    def forward(self, h: Tensor) -> Tensor:
        for layer in self.layers:
            if float(torch.rand(())) < 0.6:
                h = h + torch.tanh(layer(h))
        return h


class Centre(nn.Module):
    """Takes a running mean away, which it moves."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, h: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(0.1 * h.mean(0))
        return h - self.mean


class Counting(nn.Module):
    """Counts its calls, keeps what it saw, and computes by its count."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.seen = 0, []
        self.map = linear()

    def forward(self, h: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(tuple(h.shape))
        self.last = h.detach()
        return torch.tanh(self.map(h)) / self.calls


class Warmed(nn.Module):
    """Sets its scale from the first batch, as ActNorm does."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros(WIDTH))
        self.ready: Tensor
        self.register_buffer("ready", torch.tensor(False))

    def forward(self, h: Tensor) -> Tensor:
        if not bool(self.ready):
            with torch.no_grad():
                self.log.copy_(-(h.std(0) + 0.1).log())
                self.ready.fill_(True)
        return h * self.log.exp()


class Experts(nn.Module):
    """Sends each sample to one of two maps, by its data."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = linear(WIDTH, 2), nn.ModuleList((linear(), linear()))

    def forward(self, h: Tensor) -> Tensor:
        weights = self.gate(h).softmax(1)
        chosen = weights.argmax(1)
        out = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().squeeze(1)
            if len(rows):
                out = out.index_add(0, rows, expert(h[rows]) * weights[rows, number, None])
        return out


class Attention(nn.Module):
    """Three positions of two features look at each other."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(2, 1, batch_first=True)

    def forward(self, h: Tensor) -> Tensor:
        t = h.unflatten(1, (3, 2))
        return (t + self.mix(t, t, t)[0]).flatten(1)


class Recurrent(nn.Module):
    """Three time steps of two features."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell = kind(2, 2, batch_first=True)

    def forward(self, h: Tensor) -> Tensor:
        return self.cell(h.unflatten(1, (3, 2)))[0].flatten(1)


class Twice(nn.Module):
    """Applies one module twice."""

    def __init__(self) -> None:
        super().__init__()
        self.map = linear()

    def forward(self, h: Tensor) -> Tensor:
        return torch.tanh(self.map(torch.tanh(self.map(h))))


def parametrised() -> nn.Module:
    made = linear()
    parametrize.register_parametrization(made, "weight", Positive())
    return made


def old_weight_norm() -> nn.Module:
    return nn.utils.weight_norm(linear())


def pruned() -> nn.Module:
    return prune.random_unstructured(linear(), "weight", 0.4)


def in_place(h: Tensor, map: nn.Module) -> Tensor:
    out = map(h)
    out += h
    return functional.relu_(out)


def looped(h: Tensor, map: nn.Module) -> Tensor:
    steps = 0
    while float(h.detach().abs().mean()) > 0.3 and steps < 4:
        h, steps = torch.tanh(0.5 * map(h)), steps + 1
    return h


def sliced(h: Tensor, map: nn.Module) -> Tensor:
    out = torch.zeros_like(h)
    out[:, :3] = torch.tanh(h[:, :3])
    out[:, 3:] = map(h)[:, 3:]
    return out


def ste(h: Tensor) -> Tensor:
    return h + (h.sign() - h).detach()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "prelu": lambda: nn.PReLU(init=-0.3),
    "leaky, negative": lambda: nn.LeakyReLU(-0.5),
    "softplus": nn.Softplus,
    "softmax": lambda: nn.Softmax(1),
    "squared relu": SquaredReLU,
    "rrelu": nn.RReLU,
    "shrink": nn.Hardshrink,
    "sine": lambda: Function(torch.sin),
    "square": lambda: Function(lambda h: h.square()),
    "cumsum": lambda: Function(lambda h: h.cumsum(1)),
    "sort": lambda: Function(lambda h: h.sort(1)[0]),
    "roll": lambda: Function(lambda h: h.roll(1, 1)),
    "straight-through": lambda: Function(Sign.apply),
    "straight-through by detach": lambda: Function(ste),
    "two outputs": lambda: Function(lambda h: sum(TwoOutputs.apply(h))),
    "clamp": lambda: Function(lambda h: h.clamp(-1, 1)),
    "max pool": lambda: nn.Sequential(nn.Unflatten(1, (1, WIDTH)), nn.MaxPool1d(3, 1, 1), nn.Flatten()),
}
NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "rms norm": lambda: nn.RMSNorm(WIDTH),
    "group norm": lambda: nn.GroupNorm(2, WIDTH),
    "gains": Gains,
}
MAPS: dict[str, Callable[[], nn.Module]] = {
    "linear": linear,
    "no bias": lambda: linear(bias=False),
    "cosine": lambda: CosineLinear(WIDTH, WIDTH),
    "standardised": lambda: Standardised(WIDTH, WIDTH),
    "relu in place": lambda: nn.Sequential(linear(), nn.ReLU(inplace=True)),
    "lora": LoRA,
    "twice": Twice,
    "attention": Attention,
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "experts": Experts,
    "residual": lambda: Function(lambda h, m: h + torch.tanh(m(h)), map=linear()),
    "gated": lambda: Function(lambda h, a, b: a(h) * b(h).sigmoid(), a=linear(), b=linear()),
    "in place": lambda: Function(in_place, map=linear()),
    "loop": lambda: Function(looped, map=linear()),
    "sliced": lambda: Function(sliced, map=linear()),
    "detached branch": lambda: Function(lambda h, m: h + m(h.detach()), map=linear()),
    "bilinear": lambda: Function(lambda h, m: m(h, h.tanh()), map=nn.Bilinear(WIDTH, WIDTH, WIDTH)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 2, 3, padding=1), nn.Flatten()),
    "transposed": lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.ConvTranspose1d(2, 2, 3, padding=1), nn.Flatten()),
    "weight norm": lambda: parametrizations.weight_norm(linear()),
    "old weight norm": old_weight_norm,
    "spectral norm": lambda: parametrizations.spectral_norm(linear()),
    "parametrised": parametrised,
    "orthogonal": lambda: parametrizations.orthogonal(linear()),
    "pruned": pruned,
}
RANDOM: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.3),
    "alpha dropout": lambda: nn.AlphaDropout(0.3),
    "noise": Noise,
    "drop path": DropPath,
    "layer drop": LayerDrop,
    "functional": lambda: Function(lambda h: functional.dropout(h, 0.4)),
    "rrelu": nn.RReLU,
    "centre": Centre,
    "counting": Counting,
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "momentum of its own": lambda: nn.BatchNorm1d(WIDTH, momentum=None),
    "spectral norm": MAPS["spectral norm"],
}
REFUSED: dict[str, Callable[[], nn.Module]] = {
    "sign": lambda: Function(torch.sign),
    "detached": lambda: Function(lambda h: h.detach()),
    "numpy": lambda: Function(lambda h: torch.from_numpy(h.detach().numpy() * 2)),
    "takes a parameter": lambda: Function(lambda h, g: Scaled.apply(h, g.gain), g=Gains()),
    "checkpoint": lambda: Function(
        lambda h, m: checkpoint(m, h, use_reentrant=False), map=nn.Sequential(linear(), nn.Tanh())
    ),
    "reentrant": lambda: Function(
        lambda h, m: checkpoint(m, h, use_reentrant=True), map=nn.Sequential(linear(), nn.Tanh())
    ),
    "vmap": lambda: Function(lambda h, m: torch.func.vmap(m)(h), map=linear()),
    "argmax": lambda: Function(lambda h: functional.one_hot(h.argmax(1), WIDTH).to(h.dtype)),
}
PARTS = ACTIVATIONS | NORMS | MAPS | RANDOM


class Model(nn.Module):
    """A first map, parts, and a last map."""

    def __init__(self, names: Sequence[str], inputs: int = 5, outputs: int = 4) -> None:
        super().__init__()
        known = PARTS | REFUSED
        self.first = linear(inputs)
        self.parts = nn.ModuleList(known[name]() for name in names)
        self.last = linear(WIDTH, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        for part in self.parts:
            h = part(h)
        return self.last(h)


def build(names: Sequence[str], dtype: torch.dtype = torch.float64, **more: Any) -> Model:
    torch.manual_seed(0)
    return Model(names, **more).to(dtype)


def batch(n: int = 7, seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, generator=generator).to(dtype), torch.randint(4, (n,), generator=generator)
