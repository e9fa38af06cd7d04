"""Random networks and batches, and what may become of them: properties that tests and benchmarks/reliability share.

Each property takes one drawn case, asserts, and says in a word how the case ended.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import targetprop as tp

METHODS = tuple(tp.METHODS)
TRANSPOSES = tp.method("dtp", decoder=tp.Exact(w=0.0, damping=1.0))  # with these .grad is that of back-propagation
NOT_GRADIENTS = ("tp", "sdtp")  # their targets do not vanish with the output's gradient
SPECIAL = ("alpha dropout", "in place")
ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.ELU, nn.GELU, nn.LeakyReLU, nn.Sigmoid, nn.Softplus, nn.SiLU)


@dataclass(frozen=True)
class Block:
    """What follows a map, by name; its activation, by number."""

    width: int
    activation: int
    extra: str
    bias: bool


@dataclass(frozen=True)
class Net:
    """A network to be built."""

    conv: bool
    inputs: int
    blocks: tuple[Block, ...]
    outputs: int
    training: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.inputs, 4, 4) if self.conv else (self.inputs,)

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Sequential:
        torch.manual_seed(0)
        layers, width = [], self.inputs
        for block in self.blocks:
            layers += self._block(width, block)
            width = block.width
        top = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if self.conv else []
        return nn.Sequential(*layers, *top, nn.Linear(width, self.outputs)).to(dtype).train(self.training)

    def _block(self, width: int, block: Block) -> list[nn.Module]:
        out = block.width
        if self.conv:
            linear = nn.Conv2d(width, out, 3, padding=1, bias=block.bias)
            extras = {"norm": nn.BatchNorm2d(out), "group": nn.GroupNorm(1, out)}
            extras |= {"pool": nn.MaxPool2d(2, ceil_mode=True)}
            branch = nn.Conv2d(out, out, 3, padding=1)
        else:
            linear = nn.Linear(width, out, bias=block.bias)
            extras, branch = {"norm": nn.BatchNorm1d(out), "group": nn.LayerNorm(out)}, nn.Linear(out, out)
        extras |= {"dropout": nn.Dropout(0.3), "residual": tp.Residual(branch, nn.Tanh())}
        extras |= {"alpha dropout": nn.AlphaDropout(0.3)}
        extra = [extras[block.extra]] if block.extra in extras else []
        return [linear, nn.ReLU(inplace=True) if block.extra == "in place" else ACTIVATIONS[block.activation](), *extra]


def nets(**fixed: Any) -> st.SearchStrategy[Net]:
    sizes, kinds = st.integers(1, 5), ("plain", "plain", "norm", "group", "pool", "dropout", "residual", *SPECIAL)
    blocks = st.builds(
        Block, sizes, st.integers(0, len(ACTIVATIONS) - 1), st.sampled_from(fixed.pop("extras", kinds)), st.booleans()
    )
    free = {"conv": st.booleans(), "inputs": sizes, "blocks": st.lists(blocks, min_size=1, max_size=3).map(tuple)}
    free |= {"outputs": st.integers(1, 4), "training": st.booleans()}
    return st.builds(Net, **free | {name: st.just(value) for name, value in fixed.items()})


@dataclass(frozen=True)
class Case:
    """A step to be tried."""

    method: str
    net: Net
    n: int
    seed: int
    loss: str
    double: bool

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.double else torch.float32

    def batch(self, n: int | None = None) -> Tensor:
        shape = (self.n if n is None else n, *self.net.shape)
        return torch.randn(shape, dtype=self.dtype, generator=torch.Generator().manual_seed(self.seed))

    def labels(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1)
        if self.loss == "cross-entropy":
            return torch.randint(self.net.outputs, (self.n,), generator=generator)
        return torch.randn(self.n, self.net.outputs, dtype=self.dtype, generator=generator)

    def make_loss(self) -> nn.Module:
        reduction = "sum" if "sum" in self.loss else "mean"
        return nn.CrossEntropyLoss() if self.loss == "cross-entropy" else nn.MSELoss(reduction=reduction)

    def engine(self, model: Any, loss: Any = None, **more: Any) -> tp.TargetPropagation:
        given: dict[str, Any] = {"example_input": self.batch(2), "method": self.method, "seed": 0}
        return tp.TargetPropagation(model, loss or self.make_loss(), **given | more)


def cases(methods: tuple[str, ...] = METHODS, **fixed: Any) -> st.SearchStrategy[Case]:
    free = {"n": st.integers(1, 5), "seed": st.integers(0, 99), "double": st.booleans()}
    free |= {"loss": st.sampled_from(("cross-entropy", "squared error", "squared error, sum"))}
    known = {name: fixed.pop(name) for name in ("n", "double", "loss") if name in fixed}
    free |= {name: st.just(value) for name, value in known.items()}
    return st.builds(Case, method=st.sampled_from(methods), net=nets(**fixed), **free)


def healthy(model: nn.Module, engine: tp.TargetPropagation) -> None:
    """No NaN and nothing infinite in what is learned from or kept."""
    state = engine.state_dict()
    kept = state.get("decoders", {}) | state.get("update", {})
    kept |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, value in kept.items():
        assert torch.isfinite(value).all(), name


def step(case: Case, model: nn.Module, x: Tensor, y: Tensor, loss: Any = None, steps: int = 2) -> str:
    """Take some steps, and say how they ended; only sentences may stop them."""
    engine = case.engine(model, loss)
    for _ in range(steps):
        model.zero_grad()
        torch.manual_seed(case.seed)
        try:
            engine.backward(x, y)
        except ValueError as error:  # what PyTorch says of batch normalisation
            assert "more than 1 value per channel" in str(error)
            return "refused"
        except FloatingPointError as error:
            assert len(str(error)) > 20 and all(p.grad is None for p in model.parameters())
            healthy(model, engine)
            return "FloatingPointError"
        healthy(model, engine)
    for p in model.parameters():
        assert (p.grad is not None) == p.requires_grad
        assert p.grad is None or (p.grad.shape == p.shape and p.grad.dtype == p.dtype)
    return "finite"


def gradients(model: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def close(a: list[Tensor], b: list[Tensor]) -> None:
    size = max(float(v.abs().max()) for v in b)
    for u, v in zip(a, b, strict=True):
        torch.testing.assert_close(u, v, rtol=1e-8, atol=1e-10 * size + 1e-300)


# Properties.


def ordinary(case: Case) -> str:
    """Batch 1, width 1, a last batch that is smaller: every parameter gets a finite gradient."""
    ended = step(case, case.net.build(case.dtype), case.batch(), case.labels())
    assert ended != "FloatingPointError"
    return ended


def last_batch(case: Case) -> str:
    """A batch of another size than the ones before does what an engine that saw no other would do to the output."""
    model, x, y = case.net.build(case.dtype), case.batch(), case.labels()
    engine = case.engine(model)
    engine.backward(x, y)
    model.zero_grad()
    report = engine.backward(x[:1], y[:1])
    healthy(model, engine)
    assert len(report.output) == 1
    return "finite"


def memory(case: Case, layout: str) -> str:
    """The layout of the input in memory changes nothing, nor does a graph on it."""
    x, y = case.batch(), case.labels()
    if layout == "transposed":
        other = x.transpose(0, -1).contiguous().transpose(0, -1)
    elif layout == "every second":
        other = torch.stack([x, x + 1], dim=1).flatten(0, 1)[::2]
    elif layout == "expanded":
        x = x[:1].repeat(case.n, *[1] * (x.dim() - 1))
        other = x[:1].expand_as(x)
    elif layout == "channels last":
        other = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x.clone()
    else:
        other = x.clone().requires_grad_()
        other = other * 1 if layout == "with a graph" else other
    assert torch.equal(x, other)
    found = []
    for given in (x, other):
        model = case.net.build(case.dtype)
        ended = step(case, model, given, y)
        found.append(gradients(model))
    assert not other.is_leaf or other.grad is None
    close(found[1], found[0])
    return ended


def extreme(case: Case, power: int, where: str) -> str:
    """However large or small inputs, loss or weights: finite gradients, or a sentence and no gradient at all."""
    scale, base, model = 10.0**power, case.make_loss(), case.net.build(case.dtype)
    x = case.batch() * (scale if where == "input" else 1.0)
    if where == "weights":
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(scale)
    loss = (lambda h, y: base(h, y) * scale) if where == "loss" else base
    return step(case, model, x, case.labels(), loss)


class Flat(nn.Module):
    """A loss whose gradient is exactly zero."""

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return (h * 0).sum()


def zero(case: Case) -> str:
    """Where the gradient in the output is zero, so is every other: exactly, or to rounding after an iteration there."""
    model = case.net.build(case.dtype)
    ended = step(case, model, case.batch(), case.labels(), Flat())
    rounding = 1e3 * torch.finfo(case.dtype).eps if case.method == "learned-inverse" else 0.0
    assert all(float(g.abs().max()) <= rounding for g in gradients(model))
    return ended


def dead(case: Case) -> str:
    """Units that are never active get finite gradients, the output layer its true one."""
    model = case.net.build(case.dtype)
    with torch.no_grad():
        for module in model[:-1].modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                module.bias.fill_(-1e3)
    ended = step(case, model, case.batch(), case.labels())
    if ended == "finite" and case.method not in ("sdtp", "least-squares", "gauss-newton", "kronecker"):
        found = model[-1].weight.grad.clone()
        model.zero_grad()
        torch.manual_seed(case.seed)
        case.make_loss()(model(case.batch()), case.labels()).backward()
        tolerance = {"rtol": 1e-8, "atol": 1e-10} if case.double else {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(found, model[-1].weight.grad, **tolerance)
    return ended


def frozen(case: Case, kept: list[bool]) -> str:
    """Frozen parameters get no gradient, and the others theirs."""
    model = case.net.build(case.dtype)
    parameters = list(model.parameters())
    for p, keep in zip(parameters, kept, strict=False):
        p.requires_grad_(keep)
    if not any(p.requires_grad for p in parameters):
        with pytest.raises(ValueError, match="no trainable parameter"):
            case.engine(model).backward(case.batch(), case.labels())
        return "refused"
    return step(case, model, case.batch(), case.labels())


def shared(case: Case) -> str:
    """Layers may share a parameter: what both ask for is added up, as in back-propagation."""
    torch.manual_seed(0)
    first, width = nn.Linear(case.net.inputs, case.net.inputs), case.net.inputs
    second = nn.Linear(width, width)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(width, case.net.outputs)).to(case.dtype)
    ended = step(case, model, case.batch(), case.labels())
    model.zero_grad()
    method = "backprop" if case.method == "backprop" else TRANSPOSES
    case.engine(model, method=method).backward(case.batch(), case.labels())
    found = gradients(model)
    model.zero_grad()
    case.make_loss()(model(case.batch()), case.labels()).backward()
    close(found, gradients(model))
    return ended


def evaluating(case: Case) -> str:
    """Layers in eval mode stay as they are, and draw nothing."""
    model = case.net.build(case.dtype).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.fill_(0.3)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    model.zero_grad()
    engine = case.engine(model)
    report = engine.backward(case.batch(), case.labels())
    healthy(model, engine)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state()) or case.method == "backprop"
    torch.testing.assert_close(report.output, model(case.batch()).detach())
    return "finite"


TYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "integers": torch.int64,
    "complex": torch.complex64,
}


def misplaced(case: Case, what: str) -> str:
    """A batch, labels or a model on another device, or of another type, are named, and nothing is learned from them."""
    model, x, y, words = case.net.build(case.dtype), case.batch(), case.labels(), "meta"
    engine = case.engine(model)
    if what == "input elsewhere":
        x = x.to("meta")
    elif what == "labels elsewhere":
        y = y.to("meta")
    elif what == "model moved":
        model.to("meta")
    elif what == "model converted":
        model.to(torch.float32 if case.double else torch.float64)
        words = "build the engine after moving or converting the model|float64"
    else:
        x, words = x.to(TYPES[what]), "does not accept"
    before = copy.deepcopy(engine.state_dict())
    with pytest.raises(ValueError, match=words):
        engine.backward(x, y)
    assert all(p.grad is None for p in model.parameters())
    assert str(engine.state_dict()) == str(before)
    return "refused"


def empty(case: Case) -> str:
    """A batch without samples is refused, as an example and in training."""
    model = case.net.build(case.dtype)
    engine = case.engine(model)
    for act in (
        lambda: engine.backward(case.batch(0), case.labels()[:0]),
        lambda: engine.train_decoders(case.batch(0)),
        lambda: case.engine(model, example_input=case.batch(0)),
    ):
        with pytest.raises(ValueError, match="is empty; drop it"):
            act()
    assert all(p.grad is None for p in model.parameters())
    return "refused"


def foreign_state(case: Case, other: Net) -> str:
    """The state of another network is refused before anything is changed, unless its decoders have the same shapes."""
    mine, theirs = case.engine(case.net.build(case.dtype)), Case(**vars(case) | {"net": other})
    state = theirs.engine(other.build(case.dtype)).state_dict()
    before = copy.deepcopy(mine.state_dict())
    try:
        mine.load_state_dict(state)
    except ValueError as error:
        assert "engine state belongs to another network" in str(error)
        assert str(before) == str(mine.state_dict())
        return "refused"
    assert str(mine.state_dict()) == str(state)
    return "loaded"


PLAIN = {"extras": ("plain", "pool", "residual"), "double": True}
OTHERS = tuple(name for name in METHODS if name not in NOT_GRADIENTS)
LAYOUTS = ("transposed", "every second", "expanded", "channels last", "with a graph", "asking for a gradient")
MISPLACED = ("input elsewhere", "labels elsewhere", "model moved", "model converted", *TYPES)
POWERS = st.sampled_from((-30, -20, -12, 5, 10, 15, 18, 20, 25, 30))
PROPERTIES: dict[str, tuple[st.SearchStrategy[Any], Callable[..., str]]] = {
    "ordinary batches": (st.tuples(cases()), ordinary),
    "last batch smaller": (st.tuples(cases(extras=("plain", "dropout", "residual"))), last_batch),
    "strides": (st.tuples(cases(**PLAIN), st.sampled_from(LAYOUTS)), memory),
    "extreme scales": (
        st.tuples(cases(extras=("plain", "norm", "pool")), POWERS, st.sampled_from(("input", "loss", "weights"))),
        extreme,
    ),
    "zero targets": (st.tuples(cases(OTHERS)), zero),
    "dead units": (st.tuples(cases(extras=("plain", "pool"))), dead),
    "frozen parameters": (st.tuples(cases(), st.lists(st.booleans(), max_size=12)), frozen),
    "shared parameters": (st.tuples(cases(double=True, conv=False)), shared),
    "eval mode": (st.tuples(cases()), evaluating),
    "another device or type": (st.tuples(cases(extras=("plain",)), st.sampled_from(MISPLACED)), misplaced),
    "empty batches": (st.tuples(cases(extras=("plain",))), empty),
    "state of another network": (st.tuples(cases(), nets()), foreign_state),
}
