"""Situations: kinds of models, modules and inputs that are met beside the plain ones."""

import random
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import checkpoint

from compatibility.case import SAMPLES, WIDTH, Around, Case, Plain, apply, classes, first, in_the_middle, squared
from compatibility.modules import Evaluated


class Does(nn.Module):
    """A module that does what a function says, with the members that it is given.

    Args:
        do: takes the module and the activations.
        members: modules, parameters and buffers by name.
    """

    def __init__(self, do: Callable[[Any, Tensor], Any], **members: Any) -> None:
        """Keep the members."""
        super().__init__()
        self.do = do
        for name, member in members.items():
            if isinstance(member, Tensor) and not isinstance(member, nn.Parameter):
                self.register_buffer(name, member)
            else:
                setattr(self, name, member)

    def forward(self, h: Any, *rest: Any) -> Any:
        """Do it."""
        return self.do(self, h, *rest)


def _row(
    name: str, group: str, do: Callable[[Any, Tensor], Any], shape: tuple[int, ...] = (WIDTH,), **members: Any
) -> Case:
    return in_the_middle(name, group, lambda: Does(do, **{n: m() for n, m in members.items()}), shape)


def _square() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


def _matrix() -> nn.Parameter:
    return nn.Parameter(torch.randn(WIDTH, WIDTH) / 2)


def _vector() -> nn.Parameter:
    return nn.Parameter(torch.rand(WIDTH) + 0.5)


def _complex() -> nn.Parameter:
    return nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.complex128) / 2)


def _values() -> Iterator[Case]:
    group = "Values in the middle"
    yield _row(
        "complex numbers: fft and back",
        group,
        lambda m, h: torch.fft.irfft(torch.fft.rfft(h) * m.gain[: WIDTH // 2 + 1], WIDTH),
        gain=_vector,
    )
    yield _row("complex numbers: rotary embedding", group, _rotated, (3, WIDTH), angles=_angles)
    yield _row("a mask made by torch.vmap", group, _masked, map=_square)
    yield _row(
        "complex numbers: view_as_real", group, lambda m, h: torch.view_as_real(torch.fft.fft(m.map(h))), map=_square
    )
    yield _row("complex weights", group, lambda m, h: (h.to(m.weight.dtype) @ m.weight).abs(), weight=_complex)
    yield _row("complex numbers: an elementwise gain", group, lambda m, h: (h * m.weight[0]).abs(), weight=_complex)
    yield _row("written in place: += of a slice", group, _added, map=_square)
    yield _row("written in place: a view of zeros", group, _copied, map=_square)
    yield _row("integers: argmax, as numbers", group, lambda m, h: h + h.argmax(1, keepdim=True).to(h))
    yield _row("integers: a choice of rows by topk", group, lambda m, h: m.map(h).topk(3, 1).values, map=_square)
    yield _row("integers: gather by a sort", group, lambda m, h: h.gather(1, m.map(h).argsort(1)), map=_square)
    yield _row("a mask of comparisons", group, lambda m, h: torch.where(h > 0, m.map(h), h), map=_square)
    yield _row("booleans only", group, lambda m, h: (h > 0).to(h))
    yield _row("no gradient: torch.no_grad", group, _without_gradient, map=_square)
    yield _row("no gradient: detach", group, lambda m, h: m.map(h.detach()), map=_square)
    yield _row("partly detached", group, lambda m, h: m.map(h) + h.detach(), map=_square)
    yield _row("inference mode", group, _inferred, map=_square)
    yield _row("the output is the input", group, lambda m, h: h)
    yield _row("the output is a view", group, lambda m, h: m.map(h)[:, 1:4], map=_square)
    yield _row("the output is not contiguous", group, lambda m, h: m.map(h).transpose(1, 2), (3, WIDTH), map=_square)
    yield _row("the output is expanded", group, lambda m, h: m.map(h).unsqueeze(1).expand(-1, 3, -1), map=_square)
    yield _row("the output is strided", group, lambda m, h: m.map(h).as_strided((SAMPLES, 3), (WIDTH, 2)), map=_square)
    yield _row("written in place", group, lambda m, h: m.map(h).mul_(2.0).add_(1.0), map=_square)
    yield _row("written in place: the input", group, lambda m, h: h.mul_(0.5))
    yield _row("written in place: a slice", group, _sliced, map=_square)
    yield _row("written in place: a view", group, _viewed, map=_square)
    yield _row("written in place: += of a branch", group, _branch, map=_square)
    yield _row("written into zeros by index", group, _filled, map=_square)
    yield _row("written with out=", group, lambda m, h: _out(h))
    yield _row(
        "scattered",
        group,
        lambda m, h: torch.zeros_like(h).scatter_add(1, m.order.expand(len(h), -1), m.map(h)),
        map=_square,
        order=lambda: torch.tensor([0, 0, 2, 2, 4, 5]),
    )
    yield _row(
        "index_add_ into a buffer's copy",
        group,
        lambda m, h: m.base.clone().index_add_(0, torch.arange(SAMPLES), h),
        base=lambda: torch.zeros(SAMPLES, WIDTH),
    )
    yield _row(
        "split and joined",
        group,
        lambda m, h: torch.cat([m.map(p) for p in h.chunk(2, 1)][::-1], 1),
        map=lambda: nn.Linear(3, 3),
    )
    yield _row(
        "unbound and stacked",
        group,
        lambda m, h: torch.stack([m.map(p) for p in h.unbind(1)], 1),
        (3, 4),
        map=lambda: nn.Linear(4, 4),
    )
    yield _row("einsum", group, lambda m, h: torch.einsum("nd,de,ef->nf", h, m.a, m.b), a=_matrix, b=_matrix)
    yield _row("weight on the left", group, lambda m, h: (m.a @ h.T).T, a=_matrix)
    yield _row(
        "bmm with a weight of every position",
        group,
        lambda m, h: torch.bmm(h.transpose(0, 1), m.a).transpose(0, 1),
        (2, 6),
        a=lambda: nn.Parameter(torch.randn(2, 6, 4)),
    )
    yield _row(
        "a weight made of the activations",
        group,
        lambda m, h: torch.bmm(m.make(h).view(-1, 2, WIDTH), h.unsqueeze(2)).squeeze(2),
        make=lambda: nn.Linear(WIDTH, 2 * WIDTH),
    )
    yield _row(
        "linear algebra: solve",
        group,
        lambda m, h: torch.linalg.solve(m.a + 4 * torch.eye(WIDTH).to(h), h.T).T,
        a=_matrix,
    )
    yield _row(
        "linear algebra: svd of the activations",
        group,
        lambda m, h: h * torch.linalg.svdvals(h).sum(),
    )
    yield _row(
        "cumulative sums, sorting, norms",
        group,
        lambda m, h: h.cumsum(1).sort(1).values / (1 + h.norm(dim=1, keepdim=True)),
    )
    yield _row("statistics of the batch", group, lambda m, h: m.map(h - h.mean(0)) / (1 + h.std(0)), map=_square)
    yield _row(
        "rows reordered by a random permutation", group, lambda m, h: m.map(h[torch.randperm(len(h))]), map=_square
    )
    yield _row(
        "Python numbers read by item", group, lambda m, h: m.map(h) * float(h.detach().abs().mean()), map=_square
    )
    yield _row("Python's random numbers", group, lambda m, h: m.map(h) * (0.5 + random.random()), map=_square)
    yield _row("noise drawn on the way", group, lambda m, h: m.map(h) + torch.randn_like(h), map=_square)
    yield _row("noise drawn in place", group, lambda m, h: m.map(h) + torch.empty_like(h).normal_(), map=_square)
    yield _row(
        "torch.distributions, rsample",
        group,
        lambda m, h: torch.distributions.Normal(m.map(h), h.exp()).rsample(),
        map=_square,
    )
    yield _row("gumbel_softmax, hard", group, lambda m, h: functional.gumbel_softmax(m.map(h), hard=True), map=_square)
    yield _row("NumPy", group, lambda m, h: torch.from_numpy(h.detach().numpy() * 2))
    yield _row("a nested tensor", group, _nested, (3, WIDTH), map=_square)
    yield _row(
        "a sparse constant",
        group,
        lambda m, h: torch.sparse.mm(m.graph, m.map(h)),
        map=_square,
        graph=lambda: torch.eye(SAMPLES).to_sparse(),
    )
    yield _row("a sparse weight", group, lambda m, h: torch.sparse.mm(m.a.to_sparse(), h.T).T, a=_matrix)
    yield _row(
        "a tuple of tensors between modules",
        group,
        lambda m, h: m.b(*m.a(h)),
        a=lambda: Does(lambda m, h: (m.map(h), h), map=_square()),
        b=lambda: Does(lambda m, h, g: m.map(h) * g, map=_square()),
    )
    yield _row(
        "a dictionary between modules",
        group,
        lambda m, h: m.a(h)["out"] + m.a(h)["other"],
        a=lambda: Does(lambda m, h: {"out": m.map(h), "other": h}, map=_square()),
    )
    yield _row("half precision on the way", group, lambda m, h: m.map(h.float().to(h.dtype)), map=_square)
    yield _row("autocast inside", group, _autocast, map=_square)


def _angles() -> Tensor:
    return torch.polar(torch.ones(3, WIDTH // 2), torch.arange(3.0)[:, None] * torch.ones(WIDTH // 2))


def _rotated(m: Any, h: Tensor) -> Tensor:
    pairs = torch.view_as_complex(h.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * m.angles.to(pairs)).flatten(-2)


def _masked(m: Any, h: Tensor) -> Tensor:
    return m.map(h) * torch.vmap(lambda i: i > 1)(torch.arange(WIDTH))


def _without_gradient(m: Any, h: Tensor) -> Tensor:
    with torch.no_grad():
        return m.map(h)


def _inferred(m: Any, h: Tensor) -> Tensor:
    with torch.inference_mode():
        shift = m.map(h).mean()
    return h + float(shift)


def _autocast(m: Any, h: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        return m.map(h)


def _sliced(m: Any, h: Tensor) -> Tensor:
    h = m.map(h)
    h[:, :2] = torch.tanh(h[:, 2:4])
    return h


def _viewed(m: Any, h: Tensor) -> Tensor:
    h = m.map(h)
    h[:, :3].mul_(2.0)
    return h


def _added(m: Any, h: Tensor) -> Tensor:
    h = m.map(h)
    h[:, :2] += torch.tanh(h[:, 2:4])
    return torch.tanh(h)


def _copied(m: Any, h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    out[:, :3].copy_(m.map(h)[:, :3])
    return out + h


def _branch(m: Any, h: Tensor) -> Tensor:
    out = m.map(h)
    out += torch.tanh(h)
    return out


def _filled(m: Any, h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    out[:, ::2] = m.map(h)[:, ::2]
    out[:, 1::2] = h[:, :3]
    return out


def _out(h: Tensor) -> Tensor:
    return torch.mul(h.detach(), 2.0, out=torch.empty_like(h)) + h


def _nested(m: Any, h: Tensor) -> Tensor:
    nested = torch.nested.as_nested_tensor([row[: 1 + i % 3] for i, row in enumerate(h)], layout=torch.jagged)
    return m.map(nested).to_padded_tensor(0.0, (SAMPLES, 3, WIDTH))


def _modules() -> Iterator[Case]:
    group = "Modules"
    yield in_the_middle("a module used twice", group, _square, use=lambda m, h: m(torch.tanh(m(h))))
    yield Case("a weight shared by two modules", group, Tied)
    yield Case(
        "a weight shared by its transpose",
        group,
        lambda: Around(
            Does(lambda m, h: functional.linear(torch.tanh(functional.linear(h, m.a)), m.a.T), a=_matrix()),
            (WIDTH,),
            apply,
        ),
    )
    yield Case("a buffer shared by two modules", group, SharedBuffer)
    yield in_the_middle("a trained tensor that is no parameter", group, Hidden)
    yield in_the_middle("lazy modules, before their first call", group, lambda: nn.Identity(), before=_made_lazy)
    yield Case("parameters that need no gradient, below", group, Plain, before=lambda m: m.stem.requires_grad_(False))  # pyright: ignore
    yield Case("parameters that need no gradient, above", group, Plain, before=lambda m: m.head.requires_grad_(False))  # pyright: ignore
    yield Case("no parameter needs a gradient", group, Plain, before=lambda m: m.requires_grad_(False) and None)
    yield Case("a model in eval mode", group, Plain, before=lambda m: m.eval() and None)
    yield in_the_middle("a module in eval mode in a model in training", group, lambda: Evaluated(nn.BatchNorm1d(WIDTH)))
    yield Case("on the meta device", group, lambda: Plain().to("meta"), double=False)
    yield Case("integers as parameters", group, Plain, before=_whole_numbers)
    yield Case("float16", group, lambda: Plain().half(), inputs=lambda: torch.randn(SAMPLES, 4).half(), double=False)
    yield Case(
        "bfloat16", group, lambda: Plain().bfloat16(), inputs=lambda: torch.randn(SAMPLES, 4).bfloat16(), double=False
    )
    yield Case(
        "complex64",
        group,
        ComplexNet,
        lambda: squared_size,
        lambda: torch.randn(SAMPLES, 4, dtype=torch.complex64),
        double=False,
    )
    yield in_the_middle("quantised: dynamic", group, _square, before=_quantised, double=False)
    yield in_the_middle("quantised: prepared for training", group, _prepared, double=False)
    yield in_the_middle("fake-quantised weights and activations", group, lambda: _fake_quantised(), double=False)
    yield in_the_middle("torch.jit.script", group, lambda: torch.jit.script(nn.Sequential(_square(), nn.Tanh())))
    yield in_the_middle(
        "torch.jit.trace",
        group,
        lambda: torch.jit.trace(_square(), torch.zeros(2, WIDTH), check_trace=False),
        double=False,
    )
    yield in_the_middle(
        "torch.fx.symbolic_trace", group, lambda: torch.fx.symbolic_trace(nn.Sequential(_square(), nn.Tanh()))
    )
    yield in_the_middle(
        "gradient checkpointing",
        group,
        lambda: nn.Sequential(_square(), nn.Tanh()),
        use=lambda m, h: checkpoint.checkpoint(m, h, use_reentrant=False),
    )
    yield in_the_middle(
        "gradient checkpointing, reentrant",
        group,
        lambda: nn.Sequential(_square(), nn.Tanh()),
        use=lambda m, h: checkpoint.checkpoint(m, h, use_reentrant=True),
    )
    yield in_the_middle("saved tensors on the CPU", group, _square, use=_saved)
    yield in_the_middle("an autograd function, of activations", group, nn.Identity, use=lambda m, h: Double.apply(h))
    yield in_the_middle(
        "an autograd function, of parameters", group, _square, use=lambda m, h: OwnLinear.apply(h, m.weight) + m.bias
    )
    yield in_the_middle("straight-through sign", group, nn.Identity, use=lambda m, h: h + (h.sign() - h).detach())
    yield in_the_middle("sign", group, nn.Identity, use=lambda m, h: h.sign())
    yield in_the_middle(
        "gradients inside the forward pass", group, lambda: nn.Sequential(_square(), nn.Tanh()), use=_inner_gradient
    )
    yield in_the_middle("flex_attention", group, lambda: nn.Linear(WIDTH, 3 * WIDTH), (3, WIDTH), _flex)
    yield in_the_middle("scaled_dot_product_attention", group, lambda: nn.Linear(WIDTH, 3 * WIDTH), (3, WIDTH), _sdpa)
    yield in_the_middle("forward hooks that change the output", group, _square, before=_hooked)
    yield in_the_middle("forward pre-hooks that change the input", group, _square, before=_hooked_before)
    yield in_the_middle("full backward hooks", group, _square, before=_hooked_back)
    yield in_the_middle("hooks on parameters", group, _square, before=_hooked_parameter)
    yield in_the_middle("hooks on activations", group, _square, use=_hooked_activation)
    yield in_the_middle("a buffer that moves", group, lambda: Does(_moving, mean=torch.zeros(WIDTH)))
    yield in_the_middle("a buffer that is replaced", group, lambda: Does(_replaced, mean=torch.zeros(WIDTH)))
    yield in_the_middle(
        "a buffer that counts calls", group, lambda: Does(_counting, calls=torch.zeros((), dtype=torch.int64))
    )
    yield in_the_middle(
        "a buffer written by the activations", group, lambda: Does(_recorded, memory=torch.zeros(SAMPLES, WIDTH))
    )
    yield in_the_middle("a Python attribute that counts calls", group, lambda: Does(_python_count))
    yield in_the_middle(
        "a weight shared in storage: views of one vector",
        group,
        lambda: nn.LSTM(3, 4, batch_first=True),
        (3, 3),
        lambda m, h: m(h)[0],
        before=_flattened,
    )
    yield in_the_middle(
        "weights in channels_last, activations too",
        group,
        lambda: nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last),
        (2, 6, 6),
        lambda m, h: m(h.to(memory_format=torch.channels_last)),
    )
    yield in_the_middle(
        "tensor subclasses as parameters",
        group,
        lambda: Does(lambda m, h: h @ m.a, a=nn.Parameter(Tagged(torch.randn(WIDTH, WIDTH)))),
    )
    yield in_the_middle(
        "a weight of size zero", group, lambda: nn.Linear(WIDTH, 0), use=lambda m, h: torch.cat([h, m(h)], 1)
    )
    yield in_the_middle(
        "a parameter that nothing uses", group, lambda: Does(lambda m, h: m.map(h), map=_square(), idle=_vector())
    )
    yield in_the_middle(
        "a branch chosen by the values",
        group,
        lambda: Does(lambda m, h: m.a(h) if bool(h.sum() > 0) else m.b(h), a=_square(), b=_square()),
    )
    yield in_the_middle("a loop of as many turns as the values say", group, _square, use=_looped)
    yield in_the_middle(
        "mixture of experts, rows sent by index", group, lambda: nn.ModuleList([_square(), _square()]), use=_experts
    )
    yield in_the_middle("torch.compile of a part", group, lambda: torch.compile(_square(), backend="eager"))


class Hidden(nn.Module):
    """A module with a trained tensor that torch does not know of."""

    def __init__(self) -> None:
        """Hide it in a list."""
        super().__init__()
        self.gains = [torch.ones((), requires_grad=True)]

    def forward(self, h: Tensor) -> Tensor:
        """Scale."""
        return h * self.gains[0]


class Tagged(Tensor):
    """A subclass of tensors."""


def squared_size(output: Tensor, y: Any) -> Tensor:
    """Compute the mean square of complex numbers."""
    return output.abs().square().mean()


class ComplexNet(nn.Module):
    """A network of complex numbers."""

    def __init__(self) -> None:
        """Make the maps."""
        super().__init__()
        self.stem, self.head = (nn.Linear(4, 4, dtype=torch.complex64) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return self.head(torch.tanh(self.stem(x)))


class ComplexInput(nn.Module):
    """A network that takes complex numbers, as signals are, and goes on with real ones."""

    def __init__(self) -> None:
        """Make the model."""
        super().__init__()
        self.body = Plain()

    def forward(self, x: Tensor) -> Tensor:
        """Take their size."""
        return self.body(x.abs())


class Tied(nn.Module):
    """A weight that two modules share."""

    def __init__(self) -> None:
        """Share it."""
        super().__init__()
        self.stem, self.below, self.again, self.head = nn.Linear(4, WIDTH), _square(), _square(), nn.Linear(WIDTH, 3)
        self.again.weight = self.below.weight

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return self.head(torch.tanh(self.again(torch.tanh(self.below(torch.tanh(self.stem(x)))))))


class SharedBuffer(nn.Module):
    """A moving buffer that two modules share."""

    def __init__(self) -> None:
        """Share it."""
        super().__init__()
        self.stem, self.head, self.a, self.b = (
            nn.Linear(4, WIDTH),
            nn.Linear(WIDTH, 3),
            nn.BatchNorm1d(WIDTH),
            nn.BatchNorm1d(WIDTH),
        )
        self.b.running_mean = self.a.running_mean

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return self.head(self.b(torch.tanh(self.a(self.stem(x)))))


class Double(torch.autograd.Function):
    """Twice a value."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Double it."""
        return 2 * h

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Double the gradient."""
        return 2 * g


class OwnLinear(torch.autograd.Function):
    """A product with a weight."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Multiply."""
        ctx.save_for_backward(h, weight)
        return h @ weight.T

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Multiply by the transposes."""
        h, weight = ctx.saved_tensors
        return g @ weight, g.T @ h


def _made_lazy(model: Any) -> None:
    model.middle = nn.LazyLinear(WIDTH)


def _whole_numbers(model: Any) -> None:
    model.steps = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)


def _quantised(model: Any) -> None:
    from torch.ao.quantization import quantize_dynamic

    model.middle = quantize_dynamic(nn.Sequential(model.middle.float()), {nn.Linear}, torch.qint8)
    model.float()


def _prepared() -> nn.Module:
    from torch.ao import quantization

    module = nn.Sequential(_square(), nn.ReLU())
    module.qconfig = quantization.get_default_qat_qconfig("x86")  # pyright: ignore[reportAttributeAccessIssue]
    return quantization.prepare_qat(module.train())


def _fake_quantised() -> nn.Module:
    from torch.ao.quantization import FakeQuantize

    return nn.Sequential(_square(), FakeQuantize())


def _saved(m: Any, h: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return m(h)


def _inner_gradient(m: Any, h: Tensor) -> Tensor:
    with torch.enable_grad():
        h = h if h.requires_grad else h.requires_grad_()
        energy = m(h).square().sum()
        (force,) = torch.autograd.grad(energy, h, create_graph=True)
    return force


def _flex(m: Any, h: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = (t.unflatten(2, (2, 3)).transpose(1, 2) for t in m(h).chunk(3, 2))
    return flex_attention(q, k, v)  # pyright: ignore[reportReturnType]


def _sdpa(m: Any, h: Tensor) -> Tensor:
    q, k, v = (t.unflatten(2, (2, 3)).transpose(1, 2) for t in m(h).chunk(3, 2))
    return functional.scaled_dot_product_attention(q, k, v, dropout_p=0.2, is_causal=True)


def _hooked(model: Any) -> None:
    model.middle.register_forward_hook(lambda m, args, out: out * 2)


def _hooked_before(model: Any) -> None:
    model.middle.register_forward_pre_hook(lambda m, args: (args[0] * 2,))


def _hooked_back(model: Any) -> None:
    model.middle.register_full_backward_hook(lambda m, given, got: tuple(None if g is None else 3 * g for g in given))


def _hooked_parameter(model: Any) -> None:
    model.middle.weight.register_hook(lambda g: 3 * g)


def _hooked_activation(m: Any, h: Tensor) -> Tensor:
    h = m(h)
    if h.requires_grad:
        h.register_hook(lambda g: 3 * g)
    return h


def _moving(m: Any, h: Tensor) -> Tensor:
    with torch.no_grad():
        m.mean.mul_(0.9).add_(0.1 * h.mean(0))
    return h - m.mean


def _replaced(m: Any, h: Tensor) -> Tensor:
    m.mean = 0.9 * m.mean + 0.1 * h.detach().mean(0)
    return h - m.mean


def _counting(m: Any, h: Tensor) -> Tensor:
    m.calls += 1
    return h * (1 + m.calls)


def _recorded(m: Any, h: Tensor) -> Tensor:
    m.memory.copy_(h.detach())
    return h + m.memory


def _python_count(m: Any, h: Tensor) -> Tensor:
    m.calls = getattr(m, "calls", 0) + 1
    return h * m.calls


def _flattened(model: Any) -> None:
    own = list(model.middle.parameters())
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(own), own)


def _looped(m: Any, h: Tensor) -> Tensor:
    for _ in range(1 + int(h.detach().abs().sum()) % 3):
        h = torch.tanh(m(h))
    return h


def _experts(m: Any, h: Tensor) -> Tensor:
    out, chosen = torch.zeros_like(h), h.detach().argmax(1) % 2
    for number, expert in enumerate(m):
        rows = torch.where(chosen == number)[0]
        out[rows] = expert(h[rows])
    return out


class Several(nn.Module):
    """A model with several inputs or outputs.

    Args:
        do: takes the model and its inputs.
    """

    def __init__(self, do: Callable[..., Any]) -> None:
        """Make the maps."""
        super().__init__()
        self.do = do
        self.stem, self.side, self.head = nn.Linear(4, WIDTH), nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""
        return self.do(self, *args, **kwargs)


@dataclass
class Output:
    """What a model returns."""

    logits: Tensor
    hidden: Tensor


Pair = namedtuple("Pair", ["logits", "hidden"])


def _two() -> tuple[Tensor, Tensor]:
    return torch.randn(SAMPLES, 4), torch.randn(SAMPLES, 4)


def _one(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.tanh(m.stem(x) + m.side(x))
    return m.head(h), h


def _logits(output: Any, y: Tensor) -> Tensor:
    logits = output.logits if hasattr(output, "logits") else first(output)
    return functional.cross_entropy(logits, y)


def _interfaces() -> Iterator[Case]:
    group = "Inputs and outputs"

    def net(do: Callable[..., Any]) -> Callable[[], nn.Module]:
        return lambda: Several(do)

    def sums(m: Any, a: Tensor, b: Tensor) -> Tensor:
        return m.head(torch.tanh(m.stem(a) + m.side(b)))

    yield Case("a tuple of inputs", group, net(sums), inputs=_two)
    yield Case("a dictionary of inputs", group, net(sums), inputs=lambda: dict(zip("ab", _two(), strict=True)))
    yield Case("a list within a tuple", group, net(lambda m, pair: sums(m, *pair)), inputs=lambda: (list(_two()),))
    yield Case(
        "an input that needs a gradient", group, Plain, inputs=lambda: torch.randn(SAMPLES, 4, requires_grad=True)
    )
    yield Case("one input twice", group, net(sums), inputs=lambda: (torch.randn(SAMPLES, 4),) * 2)
    yield Case(
        "an integer beside the input",
        group,
        net(lambda m, a, n: m.head(torch.tanh(m.stem(a) * n))),
        inputs=lambda: (torch.randn(SAMPLES, 4), 2),
    )
    yield Case(
        "None beside the input",
        group,
        net(lambda m, a, n: m.head(torch.tanh(m.stem(a)))),
        inputs=lambda: (torch.randn(SAMPLES, 4), None),
    )
    yield Case(
        "a batch on the second axis",
        group,
        Second,
        lambda: lambda h, y: functional.cross_entropy(h[-1], y),
        inputs=lambda: torch.randn(3, SAMPLES, 4),
    )
    yield Case(
        "a batch of one sample", group, Plain, inputs=lambda: torch.randn(1, 4), labels=lambda: torch.tensor([1])
    )
    yield Case(
        "an empty batch",
        group,
        Plain,
        inputs=lambda: torch.randn(0, 4),
        labels=lambda: torch.zeros(0, dtype=torch.int64),
    )
    yield Case(
        "an input without samples", group, lambda: Plain((3,)), lambda: squared, inputs=lambda: torch.tensor(1.0)
    )
    yield Case("an input that is sparse", group, Plain, inputs=lambda: torch.randn(SAMPLES, 4).to_sparse())
    yield Case("an input that is not contiguous", group, Plain, inputs=lambda: torch.randn(4, SAMPLES).T)
    yield Case(
        "an input of integers",
        group,
        lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 3)),
        inputs=lambda: torch.randint(0, 9, (SAMPLES, 2)),
    )
    yield Case(
        "an input of another type",
        group,
        Plain,
        inputs=lambda: torch.randn(SAMPLES, 4).float(),
        double=False,
        before=lambda m: m.double() and None,
    )
    yield Case("an input with NaN", group, Plain, inputs=lambda: torch.full((SAMPLES, 4), torch.nan))
    yield Case("an input as NumPy", group, Plain, inputs=lambda: torch.randn(SAMPLES, 4).numpy(), double=False)
    yield Case(
        "a nested tensor as input",
        group,
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)),
        lambda: squared_values,
        inputs=lambda: torch.nested.as_nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=torch.jagged),
    )
    yield Case("a tuple as output", group, net(_one), lambda: _logits)
    yield Case("a dictionary as output", group, net(lambda m, x: OrderedDict(logits=_one(m, x)[0])), lambda: _logits)
    yield Case("a data class as output", group, net(lambda m, x: Output(*_one(m, x))), lambda: _logits)
    yield Case("a named tuple as output", group, net(lambda m, x: Pair(*_one(m, x))), lambda: _logits)
    yield Case(
        "two branches that never meet, both in the loss",
        group,
        net(lambda m, x: (m.stem(x), m.side(x))),
        lambda: lambda o, y: o[0].square().mean() + o[1].sin().mean(),
    )
    yield Case("one layer alone", group, lambda: nn.Linear(4, 3))
    yield Case("a complex input", group, ComplexInput, inputs=lambda: torch.randn(SAMPLES, 4, dtype=torch.complex128))
    yield Case(
        "two heads, both in the loss", group, net(_one), lambda: lambda o, y: _logits(o, y) + o[1].square().mean()
    )
    yield Case(
        "the model computes the loss",
        group,
        net(lambda m, x, labels: {"loss": functional.cross_entropy(_one(m, x)[0], labels)}),
        lambda: lambda o, y: o["loss"],
        inputs=lambda: {"x": torch.randn(SAMPLES, 4), "labels": classes()},
        labels=lambda: None,
    )
    yield Case("one number as output", group, net(lambda m, x: _one(m, x)[0].square().mean()), lambda: lambda o, y: o)
    yield Case(
        "the loss ignores the output", group, Plain, lambda: lambda h, y: torch.zeros((), requires_grad=True) * 1
    )
    yield Case("the loss is a Python number", group, Plain, lambda: lambda h, y: 1.0)
    yield Case("the loss has a parameter", group, Plain, Temperature)
    yield Case("the loss closes over a trained tensor", group, Plain, lambda: _closing())
    yield Case(
        "the loss has a penalty on parameters",
        group,
        Penalised,
        lambda: lambda o, y: functional.cross_entropy(o[0], y) + 0.1 * o[1],
    )


class Penalised(nn.Module):
    """A model that returns a penalty beside its output."""

    def __init__(self) -> None:
        """Make the model."""
        super().__init__()
        self.body = Plain()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run it."""
        return self.body(x), torch.stack([p.square().sum() for p in self.parameters()]).sum()


class Temperature(nn.Module):
    """Cross-entropy with a learned temperature."""

    def __init__(self) -> None:
        """Start at one."""
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        """Compute it."""
        return functional.cross_entropy(h * self.scale, y)


def _closing() -> Callable[[Tensor, Tensor], Tensor]:
    shift = torch.zeros(3, requires_grad=True)
    return lambda h, y: functional.cross_entropy(h + shift.to(h), y)


class Second(nn.Module):
    """A recurrent model whose batch is on the second axis."""

    def __init__(self) -> None:
        """Make the parts."""
        super().__init__()
        self.rnn, self.head = nn.GRU(4, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return self.head(self.rnn(x)[0])


def squared_values(output: Tensor, y: Any) -> Tensor:
    """Compute the mean square of a nested tensor's values."""
    return output.values().square().mean()


def rows() -> list[Case]:
    """List the rows."""
    return [*_values(), *_modules(), *_interfaces()]
