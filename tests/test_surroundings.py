"""What stands around a model: wrappers, hooks, changes after the engine was made, optimisers that evaluate anew."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import parts
import targetprop as tp
from cases import DTYPE, rand
from exact import EXACT, MIRRORS, TRANSPOSES, alike, buffers_alike, taken
from parts import WIDTH, Function, build, linear

CE = nn.CrossEntropyLoss()
X, Y = parts.batch()
METHODS = ["l-drl", "iterated", "dtp", "least-squares", "backprop"]


def engine(net: Any, method: Any = MIRRORS, loss: Any = CE) -> tp.TargetPropagation:
    return tp.TargetPropagation(net, loss, example_input=X, method=method, seed=0)


def expected(net: nn.Module, loss: Any = CE) -> dict[str, Tensor | None]:
    loss(net(X), Y).backward()
    return taken(net, loss)


# What is handed over as the model


def stub(name: str) -> Any:
    """Make a wrapper with the name of one that needs processes, or a compiler."""
    return type(name, (nn.Sequential,), {})


WRAPPERS = {
    "DataParallel": (nn.DataParallel, r"the model is a DataParallel, .* pass the module inside it, \.module"),
    "inside": (lambda net: nn.Sequential(nn.DataParallel(net)), "module 0 is a DataParallel"),
    "AveragedModel": (
        torch.optim.swa_utils.AveragedModel,
        "the model is an AveragedModel, a copy .* pass the one that is",
    ),
    "ScriptModule": (stub("ScriptModule"), "the model is a ScriptModule, .* pass the module that it was compiled from"),
    "FSDPModule": (stub("FSDPModule"), "the model is a FSDPModule, .* pass the model unsharded, and process_group= or"),
    "DDP": (stub("DistributedDataParallel"), r"the model is a DistributedDataParallel, .* \.module, .* process_group="),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("method", ["iterated", "backprop"])
def test_wrappers_are_named_with_the_way_out(name: str, method: str) -> None:
    wrap, message = WRAPPERS[name]
    model = wrap(build(["linear"]))
    with pytest.raises(ValueError, match=message):
        engine(model, method)
    assert str(tp.check(model, X, method).refusal) != "None"


def test_an_average_that_only_teaches_is_no_wrapper() -> None:
    teacher = torch.optim.swa_utils.AveragedModel(linear()).double()

    def taught(h: Tensor) -> Tensor:
        with torch.no_grad():
            right = teacher(h)
        return h + right

    net = build([])
    net.parts.append(Function(taught))
    engine(net).backward(X, Y)
    alike(taken(net), expected(net))


def test_maps_with_nothing_between_them_are_warned_of_and_other_models_are_not(recwarn) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(functional.relu(self.b(functional.relu(self.a(x)))))

    net, words = Net().double(), "modules 0 and 1 are applied one after the other .* pass the model itself"
    for method in ("iterated", "backprop"):
        for lost in (list(net.children()), nn.Sequential(*net.children())):
            with pytest.warns(UserWarning, match=words):
                engine(lost, method)
        with pytest.warns(UserWarning, match=words):
            tp.check(list(net.children()), X, method)
    recwarn.clear()
    separable = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 4, 1))
    code = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2), nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4))
    said = nn.Sequential(nn.Linear(5, 6), nn.Identity(), nn.Linear(6, 4))
    for model, x in ((net, X), (separable.double(), rand(2, 3, 5, 5)), (code.double(), X), (said.double(), X)):
        assert tp.check(model, x, "l-drl").supported
    assert not [w for w in recwarn if "one after the other" in str(w.message)]


# What a model may not hide


class Hiding(torch.autograd.Function):
    """Applies a map that it is not given."""

    kept: Any = None

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return Hiding.kept(h)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad @ Hiding.kept.weight


def hiding(h: Tensor, map: nn.Module) -> Tensor:
    Hiding.kept = map
    return Hiding.apply(h)


HIDDEN = {
    "checkpoint": (
        lambda h, m: checkpoint(m, h, use_reentrant=False),
        "gradient checkpointing.* is active; turn it off",
    ),
    "reentrant": (lambda h, m: checkpoint(m, h, use_reentrant=True), "gradient checkpointing.* is active; turn it off"),
    "vmap": (
        lambda h, m: torch.func.vmap(m)(h),
        "torch.func works on values that cannot be followed",
    ),
    "a function": (
        hiding,
        "Hiding is an autograd.Function that applies parts.0.map.weight, which is none of its arguments",
    ),
}


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("method", ["iterated", "dtp"])
def test_what_hides_maps_is_refused_in_a_sentence(name: str, method: str) -> None:
    function, message = HIDDEN[name]
    net = build([])
    net.parts.append(Function(function, map=linear()).double())
    assert message.replace(".*", "").split(" ")[0] in str(tp.check(net, X, method))
    with pytest.raises(ValueError, match=message):
        engine(net, method)


def test_a_model_without_a_backward_pass_is_refused_by_the_baseline_in_a_sentence() -> None:
    net = build([])
    net.parts.append(Function(lambda h, m: checkpoint(m, h, use_reentrant=True), map=linear()).double())
    with pytest.raises(ValueError, match="the model has no backward pass: When use_reentrant=True"):
        engine(net, "backprop").backward(X, Y)


# Hooks


def test_backward_hooks_are_refused_before_and_after_the_engine_is_made() -> None:
    net = build(["linear"])
    made = engine(net, "iterated")
    handle = net.last.register_full_backward_hook(lambda module, given, asked: None)
    with pytest.raises(ValueError, match="module last has a backward hook, .* register it on parameters"):
        made.backward(X, Y)
    with pytest.raises(ValueError, match="module last has a backward hook"):
        engine(net, "iterated")
    handle.remove()
    assert made.backward(X, Y).skipped is None


@pytest.mark.parametrize("method", METHODS)
def test_hooks_before_a_module_see_each_batch_once(method: str) -> None:
    """As those that collect the covariances of K-FAC do."""
    net, seen = build(["linear"]), []
    net.last.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    made = engine(net, method)
    assert seen == []
    for _ in range(2):
        made.backward(X, Y)
    assert seen == [len(X)] * 2


def test_a_hook_that_makes_the_weight_is_kept() -> None:
    net = build([])
    net.last.raw = nn.Parameter(net.last.weight.detach().clone())
    del net.last.weight
    net.last.register_forward_pre_hook(lambda module, given: setattr(module, "weight", 2 * module.raw))
    engine(net).backward(X, Y)
    alike(taken(net), expected(net))


@pytest.mark.parametrize("update", [tp.Gradient(), tp.DeltaRule(pullback="transpose"), tp.LeastSquares()])
def test_hooks_on_gradients_change_them_under_every_update(update: Any) -> None:
    found = []
    for factor in (1, 3):
        net = build(["linear"])
        for p in net.parameters():
            p.register_hook(lambda g, factor=factor: factor * g)
        engine(net, tp.method("l-drl", decoder=MIRRORS.decoder, update=update)).backward(X, Y)
        found.append(taken(net))
    alike(found[1], {name: 3 * g for name, g in found[0].items() if g is not None})


# The model that is held now


@pytest.mark.parametrize("method", ["l-drl", "iterated", "least-squares"])
def test_layers_of_other_sizes_are_trained_where_mirrors_can_be_made_anew(method: str) -> None:
    net = build(["linear"])
    made = engine(net, method)
    made.backward(X, Y)
    net.zero_grad()
    net.parts[0], net.last = linear(WIDTH, 9).double(), nn.Linear(9, 5).double()
    report = made.backward(X, Y)
    torch.testing.assert_close(report.loss, CE(net(X), Y).detach())
    assert all(p.grad is not None and p.grad.shape == p.shape for p in net.parameters())
    last = net.last.weight.grad
    CE(net(X), Y).backward()
    assert last is not None and float(torch.cosine_similarity(last.flatten(), net.last.weight.grad.flatten(), 0)) > 0.5


def test_layers_of_other_sizes_are_refused_where_decoders_are_learned() -> None:
    net = build(["linear"])
    made = engine(net, "dtp")
    net.last = nn.Linear(WIDTH, 9).double()
    with pytest.raises(ValueError, match="layer last has weights of other shapes now than when its decoder was made"):
        made.backward(X, Y)
    net.parts.append(linear().double())
    net.last = nn.Linear(WIDTH, 4).double()
    with pytest.raises(ValueError, match="layer parts.1 was not there when decoders were made: the model was changed"):
        made.backward(X, Y)


@pytest.mark.parametrize("part", ["weight", "bias", ""])
def test_what_is_frozen_later_is_left_alone_by_least_squares(part: str) -> None:
    net = build(["linear"])
    made = engine(net, "least-squares")
    made.backward(X, Y)
    net.zero_grad()
    for name, p in net.last.named_parameters():
        p.requires_grad_(part not in name)
    made.backward(X, Y)
    assert all((p.grad is not None) == p.requires_grad for p in net.parameters())


# What is repeated


@pytest.mark.parametrize("method", ["iterated", "dtp", "drl", "gait", "regularised", "transposes"])
def test_buffers_of_layers_that_are_repeated_move_once(method: str) -> None:
    names = ["linear", "centre", "linear", "counting"]
    net, twin = build(names), build(names)
    made = engine(net, EXACT.get(method, method))
    for _ in range(2):
        made.backward(X, Y)
        CE(twin(X), Y).backward()
        found, right = taken(net), taken(twin)
        if method in EXACT:
            alike(found, right)
        buffers_alike((net,), (twin,))
    assert [(m.calls, m.seen) for m in net.modules() if isinstance(m, parts.Counting)] == [(2, [(7, 6)] * 2)]


def test_values_that_are_put_together_in_place_are_no_parameters() -> None:
    net = build(["sliced", "parametrised", "sliced"])
    for method in (MIRRORS, TRANSPOSES):
        engine(net, method).backward(X, Y)
        alike(taken(net), expected(net))


def test_what_divides_by_its_own_size_is_no_crash_at_zero() -> None:
    net = build(["linear"])
    net.parts.append(Function(lambda h: h / h.abs().amax(1, keepdim=True)))
    assert engine(net, "dtp").backward(X, Y).skipped is None


# The loss


class Scaled(nn.Module):
    """Learns a temperature, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.log, self.calls = nn.Parameter(torch.tensor(0.3, dtype=DTYPE)), 0
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(4, dtype=DTYPE))

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        self.mean.mul_(0.9).add_(0.1 * output.detach().mean(0))
        return CE((output - self.mean) * self.log.exp(), y)


@pytest.mark.parametrize("method", [*METHODS, "sdtp"])
@pytest.mark.parametrize("closure", [False, True])
def test_the_parameters_of_a_loss_get_their_gradient_and_its_buffers_move_once(method: str, closure: bool) -> None:
    net, loss, other = build(["linear"]), Scaled(), Scaled()
    made = engine(net, method, (lambda output, y: loss(output, y)) if closure else loss)
    for _ in range(2):
        made.backward(X, Y)
        other(net(X), Y).backward()
        alike({"log": loss.log.grad}, {"log": other.log.grad})
        torch.testing.assert_close(loss.mean, other.mean)


def test_a_penalty_that_is_switched_on_later_is_trained() -> None:
    net, on = build(["linear"]), []

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return CE(output, y) + sum((p.square().sum() for p in net.parameters() if on), torch.zeros(()))

    made = engine(net, MIRRORS, loss)
    for state in ([], [1]):
        on[:] = state
        made.backward(X, Y)
        alike(taken(net), expected(net, loss))


# Optimisers that evaluate the loss anew


def test_closures_of_optimisers_find_the_gradient_of_where_they_are() -> None:
    ends = []
    for kind in ("engine", "plain"):
        net = build(["tanh"])
        made, optimizer = engine(net), torch.optim.LBFGS(net.parameters(), max_iter=4, line_search_fn="strong_wolfe")

        def closure(net=net, made=made, optimizer=optimizer, kind=kind) -> Tensor:
            optimizer.zero_grad()
            if kind == "engine":
                return made.backward(X, Y).loss
            loss = CE(net(X), Y)
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        ends.append(float(CE(net(X), Y).detach()))
    assert ends[0] == pytest.approx(ends[1], rel=1e-9)


def test_samples_may_depend_on_each_other_where_transposes_carry_the_change() -> None:
    mix = torch.softmax(rand(7, 7), 1)
    net = build(["linear"])
    net.parts.append(Function(lambda h, m: mix @ m(h), map=linear()).double())
    twin = copy.deepcopy(net)
    for method in (MIRRORS, TRANSPOSES):
        engine(net, method).backward(X, Y)
        alike(taken(net), expected(twin))


def test_the_baseline_warns_of_float16_too() -> None:
    net = build([], torch.float32)
    made = tp.TargetPropagation(net, CE, example_input=X.float(), method="backprop")
    with torch.autocast("cpu", torch.float16), pytest.warns(UserWarning, match="leave torch.amp.GradScaler out"):
        made.backward(X.float(), Y)


def test_an_engine_is_not_made_in_inference_mode() -> None:
    with torch.inference_mode(), pytest.raises(ValueError, match="make the engine outside torch.inference_mode"):
        engine(build([]))
