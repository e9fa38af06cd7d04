"""Weight mirrors become the weights, and give the gradients of back-propagation; one step is in test_mirror_steps."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import DTYPE, backprop, gradients, rand, relative
from one_layer import CONVS
from targetprop.batch import Batch
from targetprop.decoders.mirror_step import project
from targetprop.decoders.probes import probe


def build(net: nn.Module, x: Tensor, seed: int = 0, **settings: Any) -> tp.TargetPropagation:
    decoder = tp.WeightMirror(**{"share": 100.0} | settings)
    method = tp.Method(decoder=decoder, output_target=tp.GradientStep(beta=1e-6))
    return tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x, method=method, seed=seed)


def train(engine: tp.TargetPropagation, x: Tensor, steps: int) -> float:
    loss = torch.zeros(())
    for _ in range(steps):
        loss = engine.train_decoders(x)
    assert loss is not None
    return float(loss)


def mirror(engine: tp.TargetPropagation, key: str) -> Tensor:
    found = engine.bank.mirror(key, engine.model.get_parameter(key))
    assert found is not None
    return found


def two_layers(width: int, outputs: int = 3, inputs: int = 2, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs)).to(DTYPE)


# Many steps


class Shift(nn.Module):
    """A parameter below, which makes the map above it one that changes are pulled back through."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.zeros((), dtype=DTYPE))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("case", CONVS)
def test_mirrors_of_convolutions_become_their_weights(case: str) -> None:
    make, shape = CONVS[case]
    torch.manual_seed(0)
    net, x = nn.Sequential(Shift(), make().to(DTYPE)), rand(4, *shape, seed=1)
    engine = build(net, x)
    (use,) = engine.record(x).uses()
    seen = probe(use, mirror(engine, "1.weight"), 6, 1.0, torch.Generator().manual_seed(0), Batch(len(x)), None)
    rows, values = (seen.e, x) if use.site.kind == "conv-transpose" else (seen.z, net(x).detach())
    if rows is seen.z and net[1].bias is not None:
        values = values - net[1].bias.detach().view(-1, *[1] * (x.dim() - 2))
    groups = values.movedim(1, -1).reshape(-1, len(rows), rows.shape[2]).transpose(0, 1)
    assert torch.cdist(rows, groups).amin(2).max() < 1e-6, "activities are what the map is applied to"
    assert train(engine, x, 20) < 1e-4
    assert relative(mirror(engine, "1.weight"), net.get_parameter("1.weight").detach()) < 1e-2


def test_noise_alone_shrinks_the_error_at_the_rate_of_the_projection() -> None:
    """The squared error shrinks by 1 − n/d in the mean."""
    d, n, steps, runs = 40, 4, 20, 10
    ratios = []
    for seed in range(runs):
        net, x = two_layers(d, seed=seed), rand(5, 2, seed=seed)
        engine = build(net, x, seed, probes=n, activity=0.0)
        train(engine, x, steps)
        ratios.append(relative(mirror(engine, "2.weight"), net.get_parameter("2.weight").detach()) ** 2)
    assert sum(ratios) / runs == pytest.approx((1 - n / d) ** steps, rel=0.25)


def test_activities_teach_what_an_update_along_them_changed() -> None:
    net, x, delta = two_layers(50, 4, 6), rand(4, 6), rand(4, 4, seed=3)
    engines = {share: build(net, x, probes=16, activity=share) for share in (0.0, 1.0)}
    weight = net.get_parameter("2.weight").detach()
    for engine in engines.values():
        mirror(engine, "2.weight").copy_(weight)
    weight.add_(delta.T @ net[:2](x).detach())
    left = {}
    for share, engine in engines.items():
        train(engine, x, 1)
        left[share] = relative(mirror(engine, "2.weight"), weight)
    assert left[1.0] < 0.02 and left[0.0] > 0.3


def test_probes_along_what_an_update_remembers_teach_its_changes() -> None:
    delta, left = rand(4, 3, seed=3) @ rand(3, 50, seed=4), []

    def moved(_: str, count: int, generator: torch.Generator) -> Tensor:  # with the constant of the bias
        return nn.functional.pad(torch.randn(count, 4, generator=generator).to(delta) @ delta, (0, 1))

    for source in (moved, None):
        net, x = two_layers(50, 4, 6), rand(4, 6)
        engine, weight = build(net, x), net.get_parameter("2.weight").detach()
        v = mirror(engine, "2.weight").copy_(weight)
        weight.add_(delta)
        (use,) = (use for use in engine.record(x).uses() if use.site.key == "2.weight")
        (step,) = project([probe(use, v, 8, 0.5, torch.Generator().manual_seed(0), Batch(4), source)])
        step.take()
        left.append(relative(v, weight))
    assert left[0] < 0.05 and left[1] > 0.3


@pytest.mark.parametrize(
    ("settings", "rows", "count"),
    [({}, 5, 8), ({}, 160, 20), ({}, 800, 64), ({"share": 0.05}, 320, 16), ({"probes": 4}, 160, 4)],
)
def test_probes_are_a_share_of_the_rows(settings: dict, rows: int, count: int) -> None:
    """A step from zero has the rank of its probes."""
    net, x = two_layers(80, 80), rand(rows, 2)
    engine = build(net, x, **{"share": 0.125, "activity": 0.0} | settings)
    train(engine, x, 1)
    assert int(torch.linalg.matrix_rank(mirror(engine, "2.weight"))) == count


# Gradients


class Recurrent(nn.Module):
    """A recurrent layer on the input itself, whose own weights carry changes back through time."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell, self.head = kind(5, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.BatchNorm1d(9), nn.Linear(9, 7), nn.GELU(), nn.Linear(7, 3))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="reflect", groups=2), nn.GroupNorm(2, 6), nn.SiLU(),
        nn.ConvTranspose2d(6, 3, 2, stride=2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


def residual() -> nn.Module:
    same = nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1)
    wider, shortcut = (nn.Conv2d(4, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 6, 1)), nn.Conv2d(4, 6, 1, 2)
    blocks = tp.Residual(*same), tp.Residual(*wider, shortcut=shortcut)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *blocks, nn.Flatten(), nn.Linear(54, 3))


def attention() -> nn.Module:
    block = nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), block, nn.Flatten(), nn.Linear(24, 3))


NETWORKS = {
    "dense": (dense, (6,)),
    "convolutions": (convolutions, (2, 8, 8)),
    "residual": (residual, (2, 6, 6)),
    "attention": (attention, (4, 5)),
    "gru": (lambda: Recurrent(nn.GRU), (4, 5)),
    "lstm": (lambda: Recurrent(nn.LSTM), (4, 5)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_become_those_of_backpropagation(name: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    net = make().to(DTYPE).eval()
    x, y = rand(8, *shape), torch.arange(8) % 3
    wanted = backprop(net, nn.CrossEntropyLoss(), x, y)
    build(net, x, updates=0).backward(x, y)
    assert relative(gradients(net), wanted) > 0.1
    net.zero_grad()
    engine = build(net, x, updates=3)
    train(engine, x, 20)
    engine.backward(x, y)
    assert relative(gradients(net), wanted) < 2e-3
    assert set(engine.kinds().values()) == {"mirrored"}
    assert engine.decoder_optimizer is None
    needed = {use.site.key.replace(".", "/") for use in engine.record(x).uses() if use.site.needed}
    assert set(engine.bank.state_dict()) == needed | {"seen"}, "what no backward pass reads has no mirror"
    assert ("cell/weight_hh_l0" in needed) == isinstance(net, Recurrent), "changes go back through time by mirrors too"


# Settings and state


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probes": 0}, "decoder probes must be a number of probes ≥ 1"),
        ({"share": 0.0}, "decoder share must be a share of the rows > 0"),
        ({"updates": -1}, "decoder updates must be a number of steps ≥ 0"),
        ({"warmup": -1.0}, r"decoder warmup must be a number of probes per input in \[0, 100\]"),
        ({"activity": 1.5}, r"decoder activity must be a share of the probes in \[0, 1\]"),
        ({"activity": -0.1}, r"decoder activity must be a share of the probes in \[0, 1\]"),
    ],
)
def test_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tp.WeightMirror(**settings)


def test_no_updates_change_nothing() -> None:
    engine = build(two_layers(4), rand(4, 2), updates=0)
    assert engine.train_decoders(rand(4, 2)) is None
    assert not mirror(engine, "2.weight").any()


def test_decoders_of_one_s_own_are_refused() -> None:
    method = tp.Method(decoder=tp.WeightMirror())
    own = {"2": nn.Linear(3, 4)}
    with pytest.raises(ValueError, match="decoders names layer '2', and mirrors need no decoders; .* such as 'dtp'"):
        tp.TargetPropagation(two_layers(4), nn.MSELoss(), example_input=rand(4, 2), method=method, decoders=own)


def same(*engines: tp.TargetPropagation) -> bool:
    first, *others = (engine.bank.state_dict() for engine in engines)
    return all(torch.equal(value, other[key]) for other in others for key, value in first.items())


def test_the_seed_decides_the_probes() -> None:
    x = rand(5, 2)
    one, two, other = (build(two_layers(20), x, seed, probes=3) for seed in (0, 0, 1))
    for engine in (one, two, other):
        torch.manual_seed(int(torch.randint(1000, ())))  # the user's own random numbers have no say
        train(engine, x, 2)
    assert same(one, two) and not torch.equal(mirror(one, "2.weight"), mirror(other, "2.weight"))


def test_the_first_batch_warms_the_mirrors_up_once_and_a_saved_state_goes_on() -> None:
    x = rand(5, 2)
    warmed, plain = (build(two_layers(20), x, probes=3, warmup=warmup) for warmup in (7.0, 0.0))
    for engine in (warmed, plain):
        train(engine, x, 1)
    weight = warmed.model.get_parameter("2.weight").detach()
    left = [relative(mirror(engine, "2.weight"), weight) ** 2 for engine in (warmed, plain)]
    assert left[0] < 1e-2 and left[1] > 0.5, "a block of 140 probes covers 20 inputs"
    plain.load_state_dict(warmed.state_dict())
    stored = io.BytesIO()
    torch.save(warmed.state_dict(), stored)
    stored.seek(0)
    resumed = build(two_layers(20), x, seed=5, probes=3, warmup=7.0)
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    for engine in (warmed, plain, resumed):
        train(engine, x, 1)
    assert same(warmed, plain, resumed)


def test_a_failed_warm_up_is_taken_back_with_what_it_drew() -> None:
    x = rand(5, 2)
    spoilt, plain = (build(nn.Sequential(*two_layers(20), nn.Tanh()), x, probes=3, warmup=7.0) for _ in range(2))
    weight = spoilt.model.get_parameter("2.weight").detach()
    weight[1] *= 1e200  # the square of an answer is infinite, and the answer is not
    with pytest.raises(
        FloatingPointError, match=r"the mirror of 2\.weight has a probe's answer that is NaN or infinite"
    ):
        spoilt.train_decoders(x)
    assert not any(value.any() for value in spoilt.bank.state_dict().values())
    weight.copy_(plain.model.get_parameter("2.weight").detach())
    for engine in (spoilt, plain):
        train(engine, x, 1)
    assert same(spoilt, plain)


def test_a_weight_that_comes_later_gets_a_mirror_that_learns() -> None:
    """What lies below it may be frozen at first."""
    x, y = rand(8, 2), torch.arange(8) % 3
    net = two_layers(4)
    net[0].requires_grad_(False)
    engine = build(net, x, updates=3)
    engine.backward(x, y)
    net[0].requires_grad_(True)
    train(engine, x, 20)
    net.zero_grad()
    engine.backward(x, y)
    found = gradients(net)
    net.zero_grad()
    assert relative(found, backprop(net, nn.CrossEntropyLoss(), x, y)) < 2e-3
