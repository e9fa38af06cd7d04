"""The engine as a guest in the user's model: only ``.grad`` changes; bad input is named and changes nothing."""

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import gradients, rand
from targetprop.forward import run_example

METHODS = list(tp.METHODS)
LOSS = nn.CrossEntropyLoss()
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def network() -> nn.Sequential:
    """Build one of everything that keeps state or draws random numbers."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2),
        nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.ELU()), nn.Linear(5, 3),
    )  # fmt: skip
    return net.double()


def make(net, method="dtp", loss=LOSS, **more) -> tp.TargetPropagation:
    return tp.TargetPropagation(net, loss, example_input=rand(6, 2, 2), method=method, seed=0, **more)


def flags(net: nn.Module) -> list:
    return [(m.training, [p.requires_grad for p in m.parameters(recurse=False)]) for m in net.modules()]


def hooks(net: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    own = sum(len(getattr(m, kind)) for m in net.modules() for kind in kinds)
    return own + sum(len(p._backward_hooks or {}) for p in net.parameters())


def same(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


# Guest behaviour.


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("training", [True, False])
def test_only_gradients_change(name: str, training: bool) -> None:
    net = network().train(training)
    net[6].bias.requires_grad_(False)
    plain, x, y = copy.deepcopy(net), rand(6, 2, 2, seed=1), Y.clone()
    flags_before, parameters_before = flags(net), [p.detach().clone() for p in net.parameters()]
    torch.manual_seed(5)
    output = plain(x)
    state_after_plain_forward = torch.get_rng_state()

    torch.manual_seed(5)
    engine = make(net, name)
    assert torch.initial_seed() == 5 and hooks(net) == 0 and flags(net) == flags_before
    torch.manual_seed(5)
    report = engine.backward(x, y)

    assert torch.equal(torch.get_rng_state(), state_after_plain_forward)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), parameters_before, strict=True))
    assert same(net.state_dict(), plain.state_dict())  # batch statistics: as after one forward pass
    assert flags(net) == flags_before and hooks(net) == 0
    assert torch.equal(x, rand(6, 2, 2, seed=1)) and x.grad is None and torch.equal(y, Y)
    assert torch.allclose(report.output, output, rtol=1e-13, atol=1e-13)
    assert torch.allclose(report.loss, LOSS(output, y), rtol=1e-12)
    assert not report.output.requires_grad and not report.loss.requires_grad
    got = {n for n, p in net.named_parameters() if p.grad is not None}
    assert got == {n for n, p in net.named_parameters() if p.requires_grad}
    assert torch.isfinite(gradients(net)).all()


@pytest.mark.parametrize("name", METHODS)
def test_the_output_layer_gets_its_true_gradient(name: str) -> None:
    if name == "sdtp" or not isinstance(tp.method(name).update, tp.Gradient):
        return  # its target is the label, not a gradient step; the others solve, or have a rule of their own
    net, x = network().eval(), rand(6, 2, 2, seed=1)
    make(net, name).backward(x, Y)
    found = net[6].weight.grad.clone()
    net.zero_grad()
    LOSS(net(x), Y).backward()
    assert torch.allclose(found, net[6].weight.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_training_lowers_the_loss(name: str) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x = rand(64, 4)
    y = (x[:, 0] > 0).long()
    engine = tp.TargetPropagation(net, LOSS, example_input=x, method=name, seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-2)
    first = float(engine.backward(x, y).loss)
    for _ in range(40):
        optimizer.zero_grad()
        report = engine.backward(x, y)
        optimizer.step()
    assert float(report.loss) < (0.6 if name == "autoencoder" else 0.5) * first


def test_building_an_engine_draws_nothing_from_the_users_random_numbers() -> None:
    net = network()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    make(net, "krylov")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("gpu", [None, torch.device("cuda")])
def test_building_an_engine_seeds_no_gpu_that_is_used_later(monkeypatch, gpu) -> None:
    """Which ``torch.manual_seed`` does, in advance."""
    net, told = network(), []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", told.append)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: gpu)
    engine = tp.TargetPropagation(net, LOSS, example_input=rand(6, 2, 2), method="dtp", seed=7)
    assert told == []
    torch.random.manual_seed(7)  # since conftest.py has its own
    again = engine.method.decoder.build(engine.network, run_example(engine.network, rand(6, 2, 2)), {})
    built = zip(engine.bank.parameters(), again.parameters(), strict=True)
    assert told == [7] and all(torch.equal(one, other) for one, other in built)


def test_the_seed_decides_everything() -> None:
    found = []
    for seed, engine_seed in ((1, 0), (2, 0), (1, 1)):
        net = network().eval()
        torch.manual_seed(seed)
        engine = tp.TargetPropagation(net, LOSS, example_input=rand(6, 2, 2), method="dtp", seed=engine_seed)
        for _ in range(3):
            engine.backward(rand(6, 2, 2), Y)
        found.append(gradients(net))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", ["dtp", "learned-inverse"])
def test_decoders_of_convolutions_take_the_same_step_by_a_fused_optimizer(name: str) -> None:
    """Fused ones go through memory, and gradients of convolutions are laid out in other ways than their weights."""
    found = []
    for fused in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3)).double()
        engine = tp.TargetPropagation(
            net, LOSS, example_input=rand(6, 2, 6, 6), method=name, seed=0,
            decoder_optimizer=lambda p, fused=fused: torch.optim.Adam(p, lr=1e-2, fused=fused),
        )  # fmt: skip
        for _ in range(3):
            engine.train_decoders(rand(6, 2, 6, 6))
        found.append(torch.cat([p.flatten() for p in engine.bank.parameters()]))
    assert torch.allclose(*found, rtol=1e-9, atol=1e-12)


def test_training_the_decoders_alone_fills_no_gradient() -> None:
    net = network()
    engine = make(net, "l-drl")
    loss = engine.train_decoders(rand(6, 2, 2))
    assert loss is not None and torch.isfinite(loss)
    assert all(p.grad is None for p in net.parameters())
    assert make(network(), "fw-dtp").train_decoders(rand(6, 2, 2)) is None


def test_the_report_measures_on_request_only() -> None:
    net, x = network(), rand(6, 2, 2)
    assert make(net, "dtp").backward(x, Y).residuals() == {}
    report = make(net, "dtp").backward(x, Y, measure=True)
    assert set(report.residuals()) == {"5.0", "6"}
    assert set(report.delta_norms) >= {"1", "5.0", "6"}
    output_change = 0.1 * 6 * torch.autograd.functional.jacobian(lambda h: LOSS(h, Y), report.output)
    assert float(report.delta_norms["6"]) == pytest.approx(float(output_change.norm()) / 6**0.5, rel=1e-12)


class Pair(nn.Module):
    """Returns two outputs of one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh())
        self.one, self.two = nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.one(h), self.two(h)


@pytest.mark.parametrize("name", ["krylov", "dtp", "ddtp-linear", "regularised"])
@pytest.mark.parametrize("kind", [Pair, lambda: nn.Linear(2, 3)], ids=["two outputs", "one layer"])
def test_models_that_are_no_sequence_are_trained(name: str, kind) -> None:
    """Where all is one layer, every gradient is the true one."""
    torch.manual_seed(0)
    net, x = kind().double(), rand(6, 2, 2, seed=1)

    def loss(output, y: Tensor) -> Tensor:
        one, two = output if isinstance(output, tuple) else (output.sum(1), output.mean(2))
        return LOSS(one, y) + two.square().mean()

    engine = make(net, name, loss)
    engine.train_decoders(x)  # mirrors start at zero
    assert engine.backward(x, Y).skipped is None
    found = {n: p.grad for n, p in net.named_parameters()}
    net.zero_grad()
    loss(net(x), Y).backward()
    for n, p in net.named_parameters():
        if not n.startswith("trunk"):
            assert torch.allclose(found[n], p.grad, rtol=1e-9, atol=1e-12), n
        assert found[n].any(), n


# State.

VARIANTS = {name: tp.method(name) for name in METHODS} | {
    "least squares": tp.method("l-drl", update=tp.LeastSquares(every=3)),
    "ridge": tp.method("dtp", decoder=tp.Ridge(every=2)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_saved_engine_continues_bit_for_bit(name: str) -> None:
    def steps(net, engine, numbers) -> Tensor:
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
        for i in numbers:
            torch.manual_seed(i)
            optimizer.zero_grad()
            engine.backward(rand(6, 2, 2, seed=i), Y)
            optimizer.step()
        return gradients(net)

    net = network()
    engine = make(net, VARIANTS[name])
    steps(net, engine, range(4))
    stored = io.BytesIO()
    torch.save({"net": net.state_dict(), "engine": engine.state_dict()}, stored)
    expected = steps(net, engine, range(4, 8))

    stored.seek(0)
    state = torch.load(stored, weights_only=True)
    other = network()
    other.load_state_dict(state["net"])
    resumed = tp.TargetPropagation(other, LOSS, example_input=rand(2, 2, 2), method=VARIANTS[name], seed=99)
    resumed.load_state_dict(state["engine"])
    assert torch.equal(steps(other, resumed, range(4, 8)), expected)


def test_state_of_another_method_or_version_is_refused() -> None:
    state = make(network(), "dtp").state_dict()
    with pytest.raises(ValueError, match="belongs to method 'dtp', not 'drl'"):
        make(network(), "drl").load_state_dict(state)
    with pytest.raises(ValueError, match="has version 7; this release reads 3"):
        make(network(), "dtp").load_state_dict(state | {"version": 7})


# Bad input: the sentence names the thing, and nothing changes.


def poison(net: nn.Sequential) -> None:
    net[5][0].weight.data[0, 0] = torch.nan


X = rand(6, 2, 2, seed=1)
BATCHES = [
    (None, X[:0], Y[:0], LOSS, ValueError, "the batch is empty; drop it, or set drop_last=True"),
    (None, torch.full_like(X, torch.nan), Y, LOSS, FloatingPointError, "the input holds NaN .* clean the data"),
    (poison, X, Y, LOSS, FloatingPointError, r"layer 5\.0 returns NaN .* lower the learning rate"),
    (None, X, Y + 5, LOSS, ValueError, "labels must lie in 0…2, one per network output; got 5…7"),
    (None, X, Y - 1, LOSS, ValueError, "labels must lie in 0…2, one per network output; got -1…1"),
    (None, X, Y[:4], LOSS, ValueError, r"does not accept an output of shape \(6, 3\) with y of shape \(4,\)"),
    (None, X, Y, lambda h, y: LOSS((h, h), y), ValueError, r"the loss does not accept an output of shape \(6, 3\)"),
    (None, X, Y, lambda h, y: h.sum(1), ValueError, r"the loss has shape \(6,\); it must be one number"),
    (
        None,
        X,
        Y,
        lambda h, y: h.sum() * torch.inf,
        FloatingPointError,
        "though the outputs are finite; check the labels",
    ),
]


@pytest.mark.parametrize(("spoil", "x", "y", "loss", "error", "message"), BATCHES)
@pytest.mark.parametrize("update", [tp.Gradient(), tp.LeastSquares()])
def test_a_bad_batch_is_named_and_changes_nothing(spoil, x, y, loss, error, message, update) -> None:
    net = network().eval()
    engine = make(net, tp.method("dtp", update=update), loss)
    engine.train_decoders(X)
    if spoil:
        spoil(net)
    before, weights = copy.deepcopy(engine.state_dict()), copy.deepcopy(net.state_dict())
    with pytest.raises(error, match=message):
        engine.backward(x, y)
    after = engine.state_dict()
    assert same(before["decoders"], after["decoders"]) and same(before["update"], after["update"])
    assert same(before["generators"], after["generators"])
    assert str(before["decoder_optimizer"]) == str(after["decoder_optimizer"])
    assert str(weights) == str(net.state_dict()) and all(p.grad is None for p in net.parameters())


def test_decoders_are_not_trained_on_what_is_not_finite() -> None:
    net = network()
    engine = make(net)
    before = copy.deepcopy(engine.bank.state_dict())
    poison(net)
    with pytest.raises(FloatingPointError, match=r"layer 5\.0 returns NaN"):
        engine.train_decoders(X)
    assert same(before, engine.bank.state_dict())


def test_a_disabled_graph_is_named() -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="gradients are disabled; call it outside torch.no_grad"):
        make(network()).backward(X, Y)


ENGINES = [
    (
        lambda: make(network(), "dpt"),
        ValueError,
        "unknown method 'dpt'; the methods are l-drl, iterated, autoencoder, krylov",
    ),
    (
        lambda: make(network(), loss=nn.CrossEntropyLoss(reduction="none")),
        ValueError,
        "reduction='none'; use 'mean' or 'sum'",
    ),
    (
        lambda: make(nn.Sequential(nn.Linear(9, 3)).double()),
        ValueError,
        r"does not accept example_input of shape \(6, 2, 2\)",
    ),
    (
        lambda: make(network(), decoders={"2": nn.Linear(5, 6)}),
        ValueError,
        "decoders names layer '2', but the layers are 1, 5.0, 6",
    ),
    (lambda: make(network(), tp.Method(propagation="both")), ValueError, "propagation must be one of layerwise, joint"),
    (
        lambda: make(network(), tp.Method(decoder=tp.NoDecoder())),
        ValueError,
        "'difference' needs decoders; choose a decoder",
    ),
]


@pytest.mark.parametrize(("build", "error", "message"), ENGINES)
def test_an_engine_that_cannot_work_is_refused(build, error, message: str) -> None:
    with pytest.raises(error, match=message):
        build()


# Memory.


@pytest.mark.parametrize("name", [*METHODS, "least squares"])
def test_no_tensor_outlives_its_step(new_objects, name: str) -> None:
    net = network()
    engine, x = make(net, VARIANTS[name]), rand(6, 2, 2)

    def live() -> int:
        net.zero_grad(set_to_none=False)
        return sum(issubclass(type(o), Tensor) for o in gc.get_objects())

    for _ in range(2):
        engine.backward(x, Y)
    gc.collect()
    gc.disable()  # what only the collector could free would pile up
    try:
        before = live()
        seen = [weakref.ref(engine.backward(x, Y).output) for _ in range(4)]
        assert live() == before
        assert all(ref() is None for ref in seen)
    finally:
        gc.enable()
