"""The kinds of faults that models, losses and surroundings can bring about, each as a property of drawn cases.

Each property takes one drawn case, asserts, and says in a word how it ended.
"""

import copy
import io
import pickle
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import parts
import targetprop as tp
from exact import EXACT, alike, buffers_alike, named, refusal, taken
from parts import WIDTH, build

CE = nn.CrossEntropyLoss()
STATISTICS = {"batch norm", "momentum of its own"}  # held where layers are made again, which bends their transposes
LEARNED = ("iterated", "learned-inverse", "dtp", "drl", "ddtp-linear", "least-squares", "l-drl", "gait", "regularised")


def method_for(names: list[str], method: str) -> Any:
    """Name the method, or give the exact one."""
    return EXACT.get("mirrors" if method == "transposes" and STATISTICS & {*names} else method, method)


def engine(model: Any, loss: Any, method: Any, x: Any, **more: Any) -> tp.TargetPropagation:
    return tp.TargetPropagation(model, loss, example_input=x, method=method, **{"seed": 0} | more)


# 1. The loss reaches more than the output.


class Temperature(nn.Module):
    """A temperature that is learned, and a centre that moves."""

    def __init__(self, net: parts.Model) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(0.3))
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(4))

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            self.centre.mul_(0.9).add_(0.1 * output.mean(0))
        return functional.cross_entropy((output - self.centre) * self.log.exp(), y)


class Margin(nn.Module):
    """A head of directions, one for each class."""

    def __init__(self, net: parts.Model) -> None:
        super().__init__()
        self.classes = nn.Parameter(torch.randn(4, 4))

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        cosines = functional.linear(functional.normalize(output), functional.normalize(self.classes))
        return functional.cross_entropy(5 * (cosines - 0.2 * functional.one_hot(y, 4)), y)


class Uncertain(nn.Module):
    """Two losses, weighed by what is learned."""

    def __init__(self, net: parts.Model) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros(2))

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        both = torch.stack([functional.cross_entropy(output, y), output.square().mean()])
        return ((-self.log).exp() * both + self.log).sum()


class Head(nn.Module):
    """Goes on with maps of its own."""

    def __init__(self, net: parts.Model) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(self.maps(output), y)


class Plain(nn.Module):
    """Cross-entropy."""

    def __init__(self, net: parts.Model) -> None:
        super().__init__()

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(output, y)


BASES = {kind.__name__: kind for kind in (Temperature, Margin, Uncertain, Head, Plain)}
PENALTIES: dict[str, Callable[[parts.Model], Tensor]] = {
    "absolute": lambda net: sum((p.abs().sum() for p in net.parameters()), torch.zeros(())),
    "square of the first": lambda net: net.first.weight.square().sum(),
    "square of the last": lambda net: net.last.weight.square().sum(),
    "orthogonality": lambda net: (net.last.weight @ net.last.weight.T - torch.eye(4)).square().sum(),
    "the model again": lambda net: net.last(torch.tanh(net.first.weight.sum(1)[:WIDTH])).square().sum(),
}


class Loss(nn.Module):
    """A loss, its penalties, and the model that they look at, which is not a part of it."""

    def __init__(self, net: parts.Model, base: str, penalties: Sequence[str]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.base, self.penalties, self.net = BASES[base](net).double(), penalties, [net]

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        more = (0.01 * PENALTIES[name](self.net[0]) for name in self.penalties)
        return sum(more, self.base(output, y))


def loss_reaches(names: list[str], base: str, penalties: list[str], method: str, closure: bool) -> str:
    net = build(names)
    twin = build(names)
    loss, other = Loss(net, base, penalties), Loss(twin, base, penalties)
    x, y = parts.batch()
    called = (lambda output, y: loss(output, y)) if closure else loss
    torch.manual_seed(0)
    before = copy.deepcopy(loss.state_dict())
    made = engine(net, called, method_for(names, method), x)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
    for number in range(2):
        for run in (lambda: made.backward(x, y), lambda: other(twin(x), y).backward()):
            torch.manual_seed(number)
            run()
        alike(taken(net, loss), taken(twin, other))
        buffers_alike((net, loss), (twin, other))
    return "exact"


# 2. What is repeated is what was run.


def what_was_run(names: list[str], method: str, hooked: int) -> str:
    """Random numbers, buffers, counts and hooks are those of one ordinary pass a step, under every method."""
    net, twin, (x, y), seen = build(names), build(names), parts.batch(), {}
    for model in (net, twin):
        module = list(model.modules())[hooked % len(list(model.modules()))]
        seen[model] = []
        module.register_forward_hook(lambda module, args, output, model=model: seen[model].append(len(args)))
        module.register_forward_pre_hook(lambda module, args, model=model: seen[model].append("before"))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    made = engine(net, CE, method_for(names, method), x)
    assert torch.equal(state, torch.get_rng_state()) and seen[net] == []
    for number in range(2):
        torch.manual_seed(number)
        refused = refusal(lambda: made.backward(x, y))
        if refused is not None:
            assert {"layer drop", "loop", "experts"} & {*names}, refused
            return "refused"
        state = torch.get_rng_state()
        torch.manual_seed(number)
        CE(twin(x), y).backward()
        assert torch.equal(state, torch.get_rng_state())
        found, expected = taken(net), taken(twin)
        if method in EXACT:
            alike(found, expected)
        buffers_alike((net,), (twin,))
        for a, b in zip(net.modules(), twin.modules(), strict=True):
            if isinstance(a, parts.Counting) and isinstance(b, parts.Counting):
                assert (a.calls, a.seen) == (b.calls, b.seen) and torch.equal(a.last, b.last)
        assert seen[net] == seen[twin] or "layer drop" in names  # another path is run once more
    return "exact"


# 3. What a class computes is what its forward says, and every trainable parameter gets its gradient.


UPDATES = {
    "gradient": tp.Gradient(),
    "delta-rule": tp.DeltaRule(pullback="transpose"),
    "least-squares": tp.LeastSquares(),
}


def every_parameter(names: list[str], update: str, method: str, frozen: int, hooks: bool) -> str:
    """Under each update, through hooks on gradients, and not where it is frozen."""
    net, twin, (x, y), called = build(names), build(names), parts.batch(), []
    for parameters in (list(net.parameters()), list(twin.parameters())):
        parameters[frozen % len(parameters)].requires_grad_(False)
    recipe = tp.method("dtp", decoder=method_for(names, method).decoder, update=UPDATES[update])
    made = engine(net, CE, recipe, x)
    torch.manual_seed(0)
    made.backward(x, y)
    plain = taken(net)
    for model in (net, twin) if hooks else ():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.register_hook(lambda g: 3 * g)
                p.register_post_accumulate_grad_hook(lambda p, name=name, model=model: called.append((model, name)))
    net.load_state_dict(twin.state_dict())
    made = engine(net, CE, recipe, x)
    for run in (lambda: made.backward(x, y), lambda: CE(twin(x), y).backward()):
        torch.manual_seed(0)
        run()
    found, expected = taken(net), taken(twin)
    ours, theirs = (sorted(name for model, name in called if model is one) for one in (net, twin))
    assert ours == theirs
    if update == "gradient":
        alike(found, expected)
        return "exact"
    for name, gradient in expected.items():
        got, before = found[name], plain[name]
        assert (got is None) == (gradient is None), name
        if got is not None and before is not None:
            assert bool(torch.isfinite(got).all()), name
            alike({"": got}, {"": before * (3 if hooks else 1)}, 0.99)
    return "trained"


# 4. The decoder is what the method says.


def decoders(names: list[str], method: str, cut: str, n: int) -> str:
    net, twin, (x, y) = build(names), build(names), parts.batch(n)
    made = engine(net, CE, tp.method("l-drl", decoder=method_for(names, method).decoder, cut=cut), x)
    for number in range(2):
        for run in (lambda: made.backward(x, y), lambda: CE(twin(x), y).backward()):
            torch.manual_seed(number)
            run()
        alike(taken(net), taken(twin))
    return "exact"


# 5. The model is the one that the user holds now.


def swap(net: parts.Model) -> None:
    net.parts[0], net.parts[-1] = net.parts[-1], net.parts[0]


def wrap(net: parts.Model) -> None:
    old = net.parts[0]
    net.parts[0] = parts.Function(lambda h, m, a: m(h) + a(h), m=old, a=parts.linear().double())


def replace(place: str, module: Callable[[], nn.Module]) -> Callable[[parts.Model], None]:
    def change(net: parts.Model) -> None:
        setattr(net, place, module())

    return change


def frozen(net: parts.Model, which: str, yes: bool) -> None:
    for name, p in net.named_parameters():
        if which in name:
            p.requires_grad_(not yes)


def narrower(net: parts.Model) -> None:
    net.first, net.parts, net.last = nn.Linear(5, 3), nn.ModuleList(), nn.Linear(3, 4)
    net.double()


def reparametrised(net: parts.Model) -> None:
    parametrizations.weight_norm(net.last)


def data_changed(net: parts.Model) -> None:
    for p in net.parameters():
        p.data = torch.randn_like(p)


def hooked(net: parts.Model) -> None:
    net.first.register_forward_hook(lambda module, args, output: output.sin())


def reloaded(net: parts.Model) -> None:
    net.load_state_dict(
        {name: t * 0.7 if t.is_floating_point() else t for name, t in net.state_dict().items()}, assign=True
    )


def tied(net: parts.Model) -> None:
    net.parts.append(parts.linear().double())
    net.parts.append(parts.linear().double())
    net.parts[-1].weight = net.parts[-2].weight


CHANGES: dict[str, Callable[[Any], Any]] = {
    "another last": replace("last", lambda: nn.Linear(WIDTH, 4).double()),
    "more outputs": replace("last", lambda: nn.Linear(WIDTH, 9).double()),
    "no bias": replace("last", lambda: nn.Linear(WIDTH, 4, bias=False).double()),
    "another first": replace("first", lambda: nn.Linear(5, WIDTH).double()),
    "deeper first": replace("first", lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, WIDTH)).double()),
    "appended map": lambda net: net.parts.append(parts.linear().double()),
    "appended norm": lambda net: net.parts.append(nn.LayerNorm(WIDTH).double()),
    "appended function": lambda net: net.parts.append(nn.PReLU().double()),
    "fewer": lambda net: setattr(net, "parts", net.parts[1:]),
    "swapped": swap,
    "wrapped": wrap,
    "narrower": narrower,
    "float": lambda net: net.float(),
    "half": lambda net: net.half(),
    "bfloat16": lambda net: net.to(torch.bfloat16),
    "one converted": lambda net: net.last.float(),
    "meta": lambda net: net.to("meta"),
    "frozen": partial(frozen, which="first", yes=True),
    "frozen last": partial(frozen, which="last", yes=True),
    "frozen biases": partial(frozen, which="bias", yes=True),
    "frozen weights": partial(frozen, which="weight", yes=True),
    "unfrozen": partial(frozen, which="", yes=False),
    "reparametrised": reparametrised,
    "data": data_changed,
    "hooked": hooked,
    "reloaded": reloaded,
    "tied": tied,
    "eval": lambda net: net.eval(),
}


def held_now(names: list[str], changes: list[str], method: str, first: bool) -> str:
    """Changes after the engine was made are trained as they are, or refused, before or after a first step."""
    net, twin, (x, y) = build(names), build(names), parts.batch()
    made = engine(net, CE, method_for(names, method), x)
    if first:
        torch.manual_seed(0)
        made.backward(x, y)
        taken(net)
    twin.load_state_dict(net.state_dict())
    for model in (net, twin):
        torch.manual_seed(5)
        for change in changes:
            CHANGES[change](model)
    like = next(net.parameters())
    x, reports = x.to(like.dtype), []

    def step() -> None:
        reports.append(made.backward(x, y))

    for number in range(2):
        torch.manual_seed(number)
        refused = refusal(step)
        if refused is not None:
            assert all(p.grad is None for p in net.parameters())
            return "refused"
        torch.manual_seed(number)
        loss = CE(twin(x), y)
        loss.backward()
        torch.testing.assert_close(reports[-1].loss, loss.detach())
        found, expected = taken(net), taken(twin)
        if method in EXACT:
            alike(found, expected)
        assert {name for name, g in found.items() if g is None} == {name for name, g in expected.items() if g is None}
    return "exact"


# 6. Losses as PyTorch has them.


def soft(n: int) -> Tensor:
    return parts.batch(n)[0][:, :4].softmax(1)


def values(n: int) -> Tensor:
    return parts.batch(n, 5)[0][:, :4]


def classes(n: int) -> Tensor:
    return parts.batch(n)[1]


def some(n: int) -> Tensor:
    return torch.where(torch.arange(n) % 3 == 1, -100, classes(n))


def yes_no(n: int) -> Tensor:
    return (values(n) > 0).double()


W = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
# Labels, and ways to write one loss: as a module, a function, a partial, by hand.
LOSSES: dict[str, tuple[Callable[[int], Tensor], tuple[Any, ...]]] = {
    "classes": (
        classes,
        (
            CE,
            functional.cross_entropy,
            lambda h, y: -h.log_softmax(1).gather(1, y[:, None]).mean(),
            lambda h, y: nn.NLLLoss()(h.log_softmax(1), y),
        ),
    ),
    "classes, sum": (
        classes,
        (
            nn.CrossEntropyLoss(reduction="sum"),
            partial(functional.cross_entropy, reduction="sum"),
            lambda h, y: -h.log_softmax(1).gather(1, y[:, None]).sum(),
        ),
    ),
    "weights of classes": (classes, (nn.CrossEntropyLoss(W), partial(functional.cross_entropy, weight=W))),
    "weights of classes, sum": (
        classes,
        (nn.CrossEntropyLoss(W, reduction="sum"), lambda h, y: functional.cross_entropy(h, y, W, reduction="sum")),
    ),
    "smoothed": (
        classes,
        (nn.CrossEntropyLoss(label_smoothing=0.2), partial(functional.cross_entropy, label_smoothing=0.2)),
    ),
    "ignored": (some, (CE, functional.cross_entropy, lambda h, y: functional.cross_entropy(h[y >= 0], y[y >= 0]))),
    "soft": (soft, (CE, lambda h, y: -(y * h.log_softmax(1)).sum(1).mean())),
    "divergence": (
        soft,
        (
            lambda h, y: nn.KLDivLoss(reduction="batchmean")(h.log_softmax(1), y),
            lambda h, y: functional.kl_div(h.log_softmax(1), y, reduction="sum") / len(h),
        ),
    ),
    "squares": (values, (nn.MSELoss(), functional.mse_loss, lambda h, y: ((h - y) ** 2).mean())),
    "squares, sum": (
        values,
        (nn.MSELoss(reduction="sum"), partial(functional.mse_loss, reduction="sum"), lambda h, y: ((h - y) ** 2).sum()),
    ),
    "half squares": (
        values,
        (lambda h, y: 0.5 * (h - y).square().sum(1).mean(), lambda h, y: 2 * functional.mse_loss(h, y)),
    ),
    "absolute": (values, (nn.L1Loss(), nn.SmoothL1Loss(beta=1e-12), functional.l1_loss)),
    "huber": (values, (nn.HuberLoss(delta=0.7), partial(functional.huber_loss, delta=0.7))),
    "yes or no": (
        yes_no,
        (
            nn.BCEWithLogitsLoss(),
            functional.binary_cross_entropy_with_logits,
            lambda h, y: functional.binary_cross_entropy(h.sigmoid(), y),
        ),
    ),
    "weights of yes": (
        yes_no,
        (
            nn.BCEWithLogitsLoss(pos_weight=W),
            lambda h, y: functional.binary_cross_entropy_with_logits(h, y, pos_weight=W),
        ),
    ),
    "margins": (classes, (nn.MultiMarginLoss(), functional.multi_margin_loss)),
    "poisson": (lambda n: values(n).abs().round(), (nn.PoissonNLLLoss(), lambda h, y: (h.exp() - y * h).mean())),
    "none, averaged": (classes, (lambda h, y: functional.cross_entropy(h, y, reduction="none").mean(), CE)),
    "focal": (classes, (lambda h, y: ((1 - (p := h.softmax(1).gather(1, y[:, None]))) ** 2 * -p.log()).mean(),)),
    "scaled": (classes, (lambda h, y: 1e3 * CE(h, y), lambda h, y: CE(h, y) * 1000)),
    "two dimensions": (
        lambda n: classes(2 * n).view(n, 2),
        (
            lambda h, y: CE(h.view(len(h), 2, 2), y % 2),
            lambda h, y: CE(h.view(len(h), 2, 2).movedim(1, 2).flatten(0, 1), (y % 2).flatten()),
        ),
    ),
}


def losses(names: list[str], which: str, method: str, n: int) -> str:
    """A loss is what it computes, however it is written; a sum is as many times the mean as there are samples."""
    labels, ways = LOSSES[which]
    x, y = parts.batch(n)[0], labels(n)
    found = []
    for loss in ways:
        net = build(names)
        made = engine(net, loss, method_for(names, method), x)
        report = made.backward(x, y)
        found.append(taken(net))
        twin = build(names)
        value = loss(twin(x), y)
        torch.testing.assert_close(report.loss, value.detach())
        value.backward()
        expected = taken(twin)
        if method in EXACT:
            alike(found[-1], expected)
        alike(found[-1], found[0])
        alike({"": found[-1]["0.last.weight"]}, {"": expected["0.last.weight"]}) if method != "least-squares" else None
    return "exact"


# 7. Surroundings.


def saved(made: Any) -> Any:
    kept = io.BytesIO()
    torch.save(made, kept)
    kept.seek(0)
    return torch.load(kept, weights_only=False)


def pickles(net: nn.Module) -> bool:
    try:
        pickle.dumps(net)
    except (AttributeError, RuntimeError, pickle.PicklingError):  # a lambda, or the old weight norm
        return False
    return True


def twice_copied(made: Any) -> Any:
    return copy.deepcopy(pickle.loads(pickle.dumps(made)))


COPIES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda made: made,
    "pickled": lambda made: pickle.loads(pickle.dumps(made)),
    "saved": saved,
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "both": twice_copied,
}


class Default:
    """Another default of PyTorch for a while."""

    def __init__(self, set: Callable[[Any], Any], value: Any, old: Any) -> None:
        self.set, self.value, self.old = set, value, old

    def __enter__(self) -> None:
        self.set(self.value)

    def __exit__(self, *_: Any) -> None:
        self.set(self.old)


AROUND: dict[str, Callable[[], Any]] = {
    "nothing": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "default float32": lambda: Default(torch.set_default_dtype, torch.float32, torch.float32),
    "default float64": lambda: Default(torch.set_default_dtype, torch.float64, torch.float32),
    "default device": lambda: Default(torch.set_default_device, "cpu", None),
    "deterministic": lambda: Default(torch.use_deterministic_algorithms, True, False),
    "grad mode": lambda: torch.set_grad_enabled(True),
    "compile stance": lambda: torch.compiler.set_stance("force_eager"),
    "saved tensors": lambda: torch.autograd.graph.save_on_cpu(),
}
WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "as it is": lambda net: net,
    "list": lambda net: [net],
    "dictionary": lambda net: {"all": net},
    "sequence": lambda net: nn.Sequential(net),
    "data parallel": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled": lambda net: torch.compile(net, backend="eager"),
}


def surroundings(
    names: list[str], made_in: str, used_in: str, copied: str, wrapper: str, method: str, sizes: list[int]
) -> str:
    """What stands around an engine when it is made and used changes nothing, or is refused."""
    dtype = torch.float32 if "bfloat16" in (made_in, used_in) else torch.float64
    net, (x, y), made = build(names, dtype), parts.batch(dtype=dtype), []

    def make() -> None:
        with AROUND[made_in]():
            made.append(engine(WRAPPERS[wrapper](net), CE, method_for(names, method), x))

    refused = refusal(make)
    if refused is not None:
        assert made_in in ("inference_mode", "saved tensors") or wrapper in ("data parallel", "averaged"), refused
        return "refused"
    ours, twin = COPIES[copied if pickles(net) else "itself"](made[0]), build(names, dtype)
    given = ours.model.values() if isinstance(ours.model, dict) else ours.model
    model = named(given if isinstance(given, nn.Module) else nn.ModuleList(given))
    for number, n in enumerate(sizes):  # gradients accumulate
        x, y = parts.batch(n, number, dtype)
        torch.manual_seed(number)

        def use(x: Tensor = x, y: Tensor = y) -> None:
            with AROUND[used_in]():
                ours.backward(x, y)

        refused = refusal(use)
        if refused is not None:
            assert used_in in ("inference_mode", "no_grad", "saved tensors"), refused
            return "refused"
        torch.manual_seed(number)
        with nullcontext() if used_in != "bfloat16" else AROUND[used_in]():
            CE(twin(x), y).backward()
    found = [p.grad for p in model.values()]
    for got, p in zip(found, twin.parameters(), strict=True):
        assert (got is None) == (p.grad is None) and (got is None or got.dtype == p.dtype)
    if method in EXACT:
        expected = taken(twin)
        alike(dict(zip(expected, found, strict=True)), expected, 0.9 if used_in == "bfloat16" else 0.999)
    return "exact"


# 8. Check and engine agree.


def check_agrees(names: list[str], method: str, cut: str) -> str:
    """What check supports takes a step; what it refuses is refused in the same words."""
    net = build(names)
    x, y = parts.batch()
    before = copy.deepcopy(net.state_dict())
    said = tp.check(net, x, method, cut)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    recipe = tp.method(method, cut=cut)

    def step() -> None:
        assert engine(net, CE, recipe, x).backward(x, y).skipped is None

    refused = refusal(step)
    assert said.refusal == refused
    if refused is None:
        CE(build(names)(x), y)
        assert [layer.name for layer in said.layers] or method == "backprop"
    return "supported" if refused is None else "refused"


def some_of(*tables: dict[str, Any], most: int = 3) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from([name for table in tables for name in table]), max_size=most)


one_of = st.sampled_from
CUTS = ("post-activation", "pre-activation")
SUPPORTED = (parts.ACTIVATIONS, parts.NORMS, parts.MAPS)
KINDS: dict[str, tuple[st.SearchStrategy[Any], Callable[..., str]]] = {
    "the loss reaches more than the output": (
        st.tuples(
            some_of(*SUPPORTED), one_of(list(BASES)), some_of(PENALTIES, most=2), one_of(list(EXACT)), st.booleans()
        ),
        loss_reaches,
    ),
    "what is repeated is what was run": (
        st.tuples(some_of(parts.RANDOM, parts.MAPS), one_of((*EXACT, *LEARNED)), st.integers(0, 20)),
        what_was_run,
    ),
    "every parameter gets its gradient": (
        st.tuples(
            some_of(parts.MAPS, parts.NORMS),
            one_of(list(UPDATES)),
            one_of(("mirrors", "transposes")),
            st.integers(0, 20),
            st.booleans(),
        ),
        every_parameter,
    ),
    "the decoder is what the method says": (
        st.tuples(some_of(*SUPPORTED), one_of(("mirrors", "transposes")), one_of(CUTS), st.integers(2, 9)),
        decoders,
    ),
    "the model is the one held now": (
        st.tuples(
            some_of(*SUPPORTED).filter(bool),
            st.lists(one_of(list(CHANGES)), min_size=1, max_size=2),
            one_of((*EXACT, *LEARNED)),
            st.booleans(),
        ),
        held_now,
    ),
    "losses are what they compute": (
        st.tuples(
            some_of(parts.ACTIVATIONS, {"linear": 0, "layer norm": 0}, most=2),
            one_of(list(LOSSES)),
            one_of((*EXACT, "iterated", "dtp")),
            st.integers(2, 9),
        ),
        losses,
    ),
    "surroundings": (
        st.tuples(
            some_of(parts.ACTIVATIONS, parts.NORMS, parts.MAPS, most=2),
            one_of(list(AROUND)),
            one_of(list(AROUND)),
            one_of(list(COPIES)),
            one_of(list(WRAPPERS)),
            one_of((*EXACT, *LEARNED)),
            st.lists(st.integers(2, 9), min_size=1, max_size=3),
        ),
        surroundings,
    ),
    "check and engine agree": (
        st.tuples(some_of(*SUPPORTED, parts.REFUSED), one_of((*tp.METHODS,)), one_of(CUTS)),
        check_agrees,
    ),
}
