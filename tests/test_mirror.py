"""Weight mirrors: exact projections, exact transposes in the end, and the gradients they give."""

import pytest
import torch
from torch import nn

import targetprop as tp
from cases import DTYPE, backprop, gradients, rand, relative
from targetprop.decoders import LayerBank
from targetprop.decoders.conv import LearnedMap
from targetprop.decoders.mirror import mirrored_maps
from targetprop.decoders.mirror_step import mirror_conv, mirror_linear
from targetprop.layers.forward_pass import run_forward
from test_conv_decoders import CONVS


def build(net: nn.Module | dict, x: torch.Tensor, **settings) -> tp.TargetPropagation:
    method = tp.Method(decoder=tp.WeightMirror(**settings), output_target=tp.GradientStep(beta=1e-6))
    return tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x, method=method, seed=0)  # pyright: ignore[reportArgumentType]


def train(engine: tp.TargetPropagation, x: torch.Tensor, steps: int) -> float:
    loss = torch.zeros(())
    for _ in range(steps):
        loss = engine.train_decoders(x)
    assert loss is not None
    return float(loss)


def test_a_block_of_probes_is_explained_and_nothing_else_moves() -> None:
    w, v, e = rand(5, 9, seed=1), rand(9, 5, seed=2), rand(4, 9, seed=3)
    rest = torch.linalg.qr(e.T, mode="complete").Q[:, 4:]  # the directions that were not probed
    before = v.clone()
    step = mirror_linear(v, e, e @ w.T)
    step.take()
    torch.testing.assert_close(step.share, ((w.T - before).T @ e.T).square().sum() / (e @ w.T).square().sum())
    assert relative(e @ v, e @ w.T) < 3e-3  # up to the damping
    torch.testing.assert_close(rest.T @ v, rest.T @ before)


def test_probes_of_zero_teach_nothing() -> None:
    v = rand(3, 2)
    before = v.clone()
    step = mirror_linear(v, torch.zeros(4, 3, dtype=DTYPE), torch.zeros(4, 2, dtype=DTYPE))
    step.take()
    assert float(step.share) == 0
    torch.testing.assert_close(v, before)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("case", list(CONVS))
def test_line_search_ends_at_the_minimum_along_the_gradient(case: str) -> None:
    make, shape = CONVS[case]
    torch.manual_seed(0)
    module = make().to(DTYPE)
    x = rand(3, *shape, seed=1)
    engine = build({"below": nn.Identity(), "map": module}, x)
    assert isinstance(engine.bank, LayerBank)
    part = next(
        part for part, of, _ in mirrored_maps(engine.bank, run_forward(engine.chain, x).layers[1]) if of is module
    )
    assert isinstance(part, LearnedMap)
    probes = rand(2, *shape, seed=4)
    answers = (module(probes) - module(torch.zeros_like(probes))).detach()
    part.weight.data.copy_(rand(*part.weight.shape, seed=5))

    def missed(weight: torch.Tensor) -> torch.Tensor:
        return (answers - part.transpose(probes, weight)).square().sum()

    before = part.weight.detach().clone()
    with torch.no_grad():
        units = torch.eye(before.numel(), dtype=DTYPE).view(-1, *before.shape)
        descent = torch.stack([missed(before + u) - missed(before - u) for u in units]).view_as(before) / 2
        mirror_conv(part, probes, answers).take()
        moved = part.weight - before
        torch.testing.assert_close(moved / moved.norm(), -descent / descent.norm())
        best = missed(part.weight)
        assert best < missed(before)
        for factor in (0.99, 1.01):
            assert missed(before + factor * moved) > best


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("case", list(CONVS))
def test_mirrors_of_convolutions_become_their_weights(case: str) -> None:
    make, shape = CONVS[case]
    torch.manual_seed(0)
    module = make().to(DTYPE)
    x = rand(4, *shape, seed=1)
    engine = build({"below": nn.Identity(), "map": module}, x, probes=64)
    assert train(engine, x, 30) < 1e-4
    assert isinstance(engine.bank, LayerBank)
    assert relative(next(engine.bank.decoder("map").parameters()), module.weight.detach()) < 1e-2


def test_noise_alone_shrinks_the_error_at_the_rate_of_the_projection() -> None:
    """The squared error shrinks by 1 − n/d in the mean."""
    d, n, steps, runs = 40, 4, 30, 20
    ratios = []
    for seed in range(runs):
        torch.manual_seed(seed)
        net, w = nn.Sequential(nn.Linear(2, d), top := nn.Linear(d, 3)).to(DTYPE), top.weight.detach()
        x = rand(5, 2, seed=seed)
        engine = build(net, x, probes=n, activity=0.0)
        train(engine, x, steps)
        v = engine.bank.get_parameter("layers.1.parts.0.map.weight")
        ratios.append(relative(v.T, w) ** 2)
    expected = (1 - n / d) ** steps
    assert sum(ratios) / runs == pytest.approx(expected, rel=0.25)


def test_activities_teach_what_an_update_along_them_changed() -> None:
    torch.manual_seed(0)
    below, top = nn.Sequential(nn.Linear(6, 50), nn.Tanh()).to(DTYPE), nn.Linear(50, 4, dtype=DTYPE)
    net = nn.Sequential(*below, top)
    x, delta = rand(4, 6), rand(4, 4, seed=3)
    engines = {share: build(net, x, probes=16, activity=share) for share in (0.0, 1.0)}
    a = below(x).detach()
    for engine in engines.values():
        engine.bank.get_parameter("layers.2.parts.0.map.weight").data.copy_(top.weight.T)
    top.weight.data.add_(delta.T @ a)
    left = {}
    for share, engine in engines.items():
        train(engine, x, 1)
        left[share] = relative(engine.bank.get_parameter("layers.2.parts.0.map.weight").T, top.weight.detach())
    assert left[1.0] < 0.02 and left[0.0] > 0.3


def _dense() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 9), nn.Tanh(), nn.BatchNorm1d(9), nn.Linear(9, 7), nn.GELU(), nn.Linear(7, 3)
    )  # fmt: skip


def _convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="reflect", groups=2), nn.GroupNorm(2, 6), nn.SiLU(),
        nn.ConvTranspose2d(6, 3, 2, stride=2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


def _residual() -> nn.Sequential:
    same = nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1)
    wider, shortcut = (nn.Conv2d(4, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 6, 1)), nn.Conv2d(4, 6, 1, 2)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), tp.Residual(*same, correction=True),
        tp.Residual(*wider, shortcut=shortcut, correction=True), nn.Flatten(), nn.Linear(54, 3),
    )  # fmt: skip


def _tokens() -> nn.Sequential:
    branch = nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU()
    return nn.Sequential(
        nn.Linear(5, 6), nn.Tanh(), tp.Residual(*branch, correction=True), nn.Flatten(), nn.Linear(24, 3)
    )  # fmt: skip


NETWORKS = {
    "dense": (_dense, (6,)),
    "convolutions": (_convolutions, (2, 8, 8)),
    "residual": (_residual, (2, 6, 6)),
    "tokens": (_tokens, (4, 5)),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_gradients_become_those_of_backpropagation(name: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    net = make().to(DTYPE).eval()
    x, y = rand(8, *shape), torch.arange(8) % 3
    engine = build(net, x, updates=3, probes=32)
    train(engine, x, 60)
    engine.backward(x, y)
    found = gradients(net)
    net.zero_grad()
    assert relative(found, backprop(net, nn.CrossEntropyLoss(), x, y)) < 2e-3
    assert set(engine.bank.kinds().values()) == {"mirrored"}
    assert engine.decoder_optimizer is None


def test_other_decoders_are_trained_beside_mirrors() -> None:
    class Scale(nn.Module):
        def forward(self, x):
            return 2 * x

    torch.manual_seed(0)
    layers = {"a": nn.Linear(3, 4), "b": Scale(), "c": nn.Linear(4, 3)}
    for layer in layers.values():
        layer.to(DTYPE)
    x, own = rand(32, 3), nn.Linear(4, 4, dtype=DTYPE)
    method = tp.Method(decoder=tp.WeightMirror())
    engine = tp.TargetPropagation(
        layers, nn.CrossEntropyLoss(), example_input=x, method=method, decoders={"b": own}, seed=0,
        decoder_optimizer=lambda p: torch.optim.Adam(p, lr=0.03),
    )  # fmt: skip
    assert engine.bank.kinds() == {"b": "learned", "c": "mirrored"}
    for _ in range(300):
        engine.train_decoders(x)
    torch.testing.assert_close(own.weight, 2 * torch.eye(4, dtype=DTYPE), atol=0.1, rtol=0)
    assert isinstance(engine.bank, LayerBank)
    assert relative(next(engine.bank.decoder("c").parameters()).T, layers["c"].weight.detach()) < 1e-3


@pytest.mark.parametrize("settings", [{"probes": 0}, {"updates": -1}, {"activity": 1.5}, {"activity": -0.1}])
def test_settings_out_of_range(settings: dict) -> None:
    with pytest.raises(ValueError, match="probes ≥ 1"):
        tp.WeightMirror(**settings)


def test_no_updates_change_nothing() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(DTYPE)
    x = rand(4, 3)
    engine = build(net, x, updates=0)
    assert engine.train_decoders(x) is None
    assert not engine.bank.get_parameter("layers.1.parts.0.map.weight").any()


def test_the_first_batch_warms_the_mirrors_up_once() -> None:
    net, x = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).to(DTYPE), rand(5, 6)
    warmed, plain = build(net, x, probes=3, warmup=7), build(net, x, probes=3)
    train(warmed, x, 1)
    train(plain, x, 8)
    first = {name: value.clone() for name, value in warmed.bank.state_dict().items()}
    assert all(torch.equal(value, first[name]) for name, value in plain.bank.state_dict().items())
    resumed = build(net, x, probes=3, warmup=7)
    resumed.load_state_dict(warmed.state_dict())
    for engine in (warmed, plain, resumed):
        train(engine, x, 1)
        states = zip(engine.bank.state_dict().values(), warmed.bank.state_dict().values(), strict=True)
        assert all(torch.equal(one, other) for one, other in states)
