"""Arguments and batches of a wrong kind are named; what overflows is not learned from."""

import copy

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp

LOSS = nn.CrossEntropyLoss()
X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def make(model=None, loss=LOSS, **more) -> tp.TargetPropagation:
    return tp.TargetPropagation(model or network(), loss, **{"example_input": X, "seed": 0} | more)


ARGUMENTS = [
    (lambda: make(method=3), "method must be a name or a Method; got int"),
    (lambda: make(loss="mse"), "loss must be a function of output and labels; got str"),
    (lambda: make(seed="a"), "seed must be a whole number or None; got 'a'"),
    (lambda: make(seed=1.5), "seed must be a whole number or None; got 1.5"),
    (lambda: make(example_input=X.tolist()), "example_input must be a tensor; got list"),
    (lambda: make(decoders=[nn.Linear(3, 5)]), "decoders must be a dictionary of modules by layer name"),
    (lambda: make(decoders={"4": lambda y: y}), "decoders must be a dictionary of modules by layer name"),
    (lambda: make(method="dtp", decoder_optimizer=lambda p: None), "decoder_optimizer must return an optimiser"),
    (lambda: make([nn.Linear(4, 3), 3]), "layer 1 must be a module; got int"),
    (lambda: make(3), "the model must be a module or a list of modules; got int"),
    (lambda: make(3, method="dtp"), "the model must be a module or a list of modules; got int"),
    (lambda: make().backward(X.numpy(), Y), "the batch must be a tensor; got ndarray"),
]


@pytest.mark.parametrize(("act", "message"), ARGUMENTS)
def test_arguments_of_a_wrong_kind_are_named(act, message):
    with pytest.raises(TypeError, match=message):
        act()


def loss_of(function, method="krylov"):
    return lambda: make(loss=function, method=method).backward(X, Y)


VALUES = [
    (lambda: make(example_input=X[:0]), "example_input is empty"),
    (lambda: make(example_input=X.to("meta")), "the input is on meta and the model on cpu; move one of them"),
    (lambda: make(network().to("meta")), "the model is on the meta device and holds no numbers"),
    (lambda: make().backward(X.to_sparse(), Y), "the batch must be a dense tensor; got the layout torch.sparse_coo"),
    (lambda: make().backward(torch.tensor(1.0), Y), r"must have shape \(n, …\); got a single number"),
    (
        lambda: make().backward(X[0], Y[:1]),
        r"the loss does not accept an output of shape \(3,\) with y of shape \(1,\)",
    ),
    (
        lambda: make(method="dtp").backward(X[0], Y[:1]),
        r"the loss does not accept an output of shape \(3,\) with y of shape \(1,\)",
    ),
    (
        lambda: make(nn.LSTM(4, 3), method="dtp").backward(X, Y),
        "no layer can end anywhere",
    ),
    (lambda: make().backward(X, Y + 5), "labels must lie in 0…2, one per network output; got 5…7"),
    (lambda: make().backward(X, Y[:4]), r"does not accept an output of shape \(6, 3\) with y of shape \(4,\)"),
    (lambda: make().backward(X[:, :3], Y), r"the model, float32, does not accept an input of shape \(6, 3\)"),
    (
        lambda: make(method="dtp").backward(X[:, :3], Y),
        r"the model, float32, does not accept an input of shape \(6, 3\)",
    ),
    (lambda: make(nn.ReLU(), method="backprop").backward(X, Y), "the model has no trainable parameter"),
    (lambda: make(method="backprop").backward(X.double(), Y), "does not accept an input of .* type float64"),
    (lambda: make(method="backprop").backward(X.to("meta"), Y), "the input is on meta and the model on cpu"),
    (loss_of(lambda h, y: 3.0), "the loss returns float; it must be a tensor"),
    (loss_of(lambda h, y: h.detach().sum()), "the loss does not depend on the output"),
    (loss_of(lambda h, y: torch.ones((), requires_grad=True) * 2), "the loss does not depend on the output"),
    (loss_of(lambda h, y: h.to("meta").sum()), "the loss is on meta and the output on cpu; move the labels there"),
    (loss_of(lambda h, y: 3.0, "dtp"), "the loss returns float; it must be a tensor"),
    (loss_of(lambda h, y: h.detach().sum(), "dtp"), "the loss does not depend on the output"),
    (loss_of(lambda h, y: torch.ones((), requires_grad=True) * 2, "dtp"), "the loss does not depend on the output"),
    (lambda: make(network().half(), example_input=X.half()), "a mirror needs parameters in float32 or float64"),
    (
        lambda: make(
            network().bfloat16(), example_input=X.bfloat16(), method=tp.method("dtp", update=tp.LeastSquares())
        ),
        "least squares needs parameters in float32 or float64, and the model has torch.bfloat16",
    ),
    (
        lambda: make(network().half(), example_input=X.half(), method=tp.method("dtp", decoder=tp.Ridge())),
        "ridge regression needs parameters in float32 or float64",
    ),
    (lambda: make(method="backprop").load_state_dict(None), "must be what state_dict returned; got NoneType"),
    (lambda: make().load_state_dict({"version": 3, "method": "l-drl"}), "belongs to another network: its decoders"),
]


@pytest.mark.parametrize(("act", "message"), VALUES)
def test_what_does_not_fit_is_named(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_half_precision_trains_where_nothing_is_solved():
    for name in ("dtp", "fw-dtp", "regularised", "backprop"):
        model = network().bfloat16()
        make(model, example_input=X.bfloat16(), method=name).backward(X.bfloat16(), Y)
        assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.bfloat16 for p in model.parameters())


def test_a_want_of_memory_keeps_its_kind():
    class Hungry(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if hungry:
                raise torch.OutOfMemoryError("no memory")
            return x

    hungry = False
    engine = make(nn.Sequential(nn.Linear(4, 3), Hungry()))
    hungry = True
    with pytest.raises(torch.OutOfMemoryError):
        engine.backward(X, Y)


@pytest.mark.parametrize(("name", "slope"), [("krylov", 1e38), ("least-squares", 1e30), ("backprop", 1e38)])
def test_a_gradient_that_overflows_is_dropped(name, slope):
    model = network()
    engine = make(model, lambda h, y: (h - h.detach()).sum() * slope, method=name)  # a loss of 0
    with pytest.raises(FloatingPointError, match="gradient is NaN or infinite"):
        engine.backward(X * 100, Y)
    assert all(p.grad is None for p in model.parameters())


def test_decoders_take_no_step_on_a_gradient_that_overflows():
    model = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(), nn.Linear(6, 3)).requires_grad_(True)
    engine = make(model, method="dtp")
    engine.train_decoders(X)
    before, learned = copy.deepcopy(engine.state_dict()), "layers.2.learned.2:linear.weight"
    with pytest.raises(FloatingPointError, match="too large to be squared"):
        engine.train_decoders(X * 1e25)
    after = engine.state_dict()
    assert all(torch.equal(value, after["decoders"][name]) for name, value in before["decoders"].items())
    assert str(before["decoder_optimizer"]) == str(after["decoder_optimizer"])
    engine.train_decoders(X)
    assert not torch.equal(engine.bank.state_dict()[learned], before["decoders"][learned])


def test_mirrored_convolutions_keep_their_weights_where_probes_overflow():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    model[1] = nn.LeakyReLU()
    x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    engine = make(model, example_input=x)
    engine.train_decoders(x)
    for scale in (1e19, 1e28):
        with pytest.raises(FloatingPointError, match="probe's answer|too large to be squared"):
            engine.train_decoders(x * scale)
    mirror = engine.bank.mirror("2.weight", model[2].weight)
    assert torch.isfinite(mirror).all() and mirror.any()


@pytest.mark.parametrize("parts", [{"decoder": tp.Ridge()}, {"update": tp.LeastSquares()}], ids=["ridge", "update"])
@pytest.mark.parametrize("bad", [1.5e19, 1e30, torch.inf, torch.nan])
def test_running_covariances_stay_as_they_are_where_activations_cannot_be_squared(parts, bad):
    engine = make(network(), method=tp.method("dtp", **parts))
    engine.backward(X, Y)
    before = copy.deepcopy(engine.state_dict())
    with pytest.raises(FloatingPointError):
        engine.backward(torch.full_like(X, bad), Y)
    after = engine.state_dict()
    for part in ("decoders", "update"):
        assert all(torch.equal(value, before[part][name]) for name, value in after[part].items())


def test_the_baseline_leaves_the_graph_of_its_input_alone():
    x = X.clone().requires_grad_()
    make(method="backprop").backward(x * 1, Y)
    assert x.grad is None
