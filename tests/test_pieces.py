"""Pieces of a layer: where they begin and end, what they do to values, and how each is decoded in every style."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import targetprop as tp
from cases import DTYPE, rand, relative
from one_layer import CONVS, IMAGE, SERIES, Attention, Function, bind, pulled, rough
from targetprop.decoders.nature import Nature, find_nature
from targetprop.layers import record_layers
from targetprop.testing import DecoderContract

# PyTorch says that this padding may copy its input.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

# Where pieces begin and end

SPLITS = {
    "in order": ([nn.Linear(4, 4), nn.ReLU(inplace=True), nn.LayerNorm(4)], ["linear", "relu", "layer_norm"]),
    "branch": ([nn.Tanh(), tp.Residual(nn.Linear(4, 4), nn.ELU()), nn.ReLU()], ["tanh", "linear elu add", "relu"]),
    "branches in a branch": ([tp.Residual(tp.Residual(nn.Linear(4, 4)), nn.Tanh())], ["linear add tanh add"]),
    "attention": ([Attention(4)], ["linear", "chunk get matmul div softmax matmul", "linear"]),
    "unused": ([nn.Linear(4, 4), Function(lambda h: (h.exp(), h.cos())[1])], ["linear", "cos"]),
    "used twice": ([nn.Linear(4, 4), Function(lambda h: h * h.sigmoid())], ["linear", "sigmoid mul"]),
    "deciding": (
        [Function(lambda h, gate: h * (gate(h).argmax(-1, True) > 0), nn.Linear(4, 2))],
        ["linear argmax gt mul"],
    ),
    "beside": ([nn.Linear(4, 4), Function(lambda h: h + torch.ones(4).exp())], ["linear", "add"]),
}


def test_what_a_layer_decides_it_decides_anew_when_it_is_made_again() -> None:
    def leaky(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.1 * x)

    below, above, x = nn.Linear(4, 5), nn.Linear(5, 3), rand(6, 5, seed=5)
    net = nn.Sequential(below, Function(leaky), above, Function(leaky)).to(DTYPE)
    layer = record_layers(net, rand(6, 4)).layers[1]
    torch.testing.assert_close(layer.f(x), leaky(above(x)), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", SPLITS)
def test_pieces_begin_where_one_value_is_alive(name: str) -> None:
    modules, expected = SPLITS[name]
    pieces = bind(nn.Sequential(*modules), rand(3, 2, 4)).layer.layer.segment.pieces
    assert [" ".join(n.strip("_") for n in piece.names) for piece in pieces] == expected


# What they do to values


def repeated_dropout(x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return functional.dropout(x, 0.5)


SAME, MIXED, OPAQUE = Nature(False, True), Nature(False, False, uneven=True), Nature(True, True)
EACH, SCALED = Nature(False, True, True, True), Nature(False, True, True, True, uneven=True)
MOVED, TAKEN = Nature(False, True, False, True), Nature(False, False, False, True)
STATISTICS = rand(2, 3, seed=3).abs() + 0.5
NATURES = {
    "relu": (torch.relu, EACH), "tanh": (torch.tanh, EACH), "gelu": (functional.gelu, EACH),
    "dropout with one mask": (repeated_dropout, SCALED),
    "batch norm, fixed": (lambda x: functional.batch_norm(x, *STATISTICS), SCALED),
    "batch norm, measured": (lambda x: functional.batch_norm(x, None, None, training=True), SAME),
    "layer norm": (lambda x: functional.layer_norm(x, x.shape[1:]), SAME), "softmax": (lambda x: x.softmax(1), SAME),
    "cumulative sum": (lambda x: x.cumsum(1), Nature(False, True, uneven=True)),
    "max pool": (lambda x: functional.max_pool2d(x, 2), TAKEN),
    "max pool with overlap": (lambda x: functional.max_pool2d(x, 3, 1), MIXED),
    "average pool": (lambda x: functional.avg_pool2d(x, 2), MIXED),
    "average pool with overlap": (lambda x: functional.avg_pool2d(x, 3, 1), MIXED),
    "mean over tokens": (lambda x: x.mean(2), MIXED), "first token": (lambda x: x[:, :, 0], TAKEN),
    "repetition": (lambda x: x.repeat(1, 1, 2, 1), MIXED), "flatten": (lambda x: x.flatten(1), TAKEN),
    "transpose": (lambda x: x.transpose(1, 2), TAKEN), "flip": (lambda x: x.flip(1), MOVED),
    "zeros around": (lambda x: functional.pad(x, (1, 2)), TAKEN),
    "reflection": (lambda x: functional.pad(x, (1, 2, 0, 0), mode="reflect"), MIXED), "sign": (torch.sign, OPAQUE),
    "comparison": (lambda x: (x > 0).to(x.dtype), OPAQUE),
    "NumPy": (lambda x: torch.from_numpy(np.tanh(x.detach().numpy())), OPAQUE),
    "NumPy without detaching": (lambda x: torch.from_numpy(np.tanh(x.numpy())), OPAQUE),
    "place of the largest": (lambda x: x.flatten(1).argmax(1).to(x.dtype), Nature(True, False)),
    "constant": (torch.zeros_like, SAME), "never active": (lambda x: (x - 1e6).relu(), SAME),
}  # fmt: skip


@pytest.mark.parametrize("name", NATURES)
def test_what_a_function_does_is_found_by_trying_it(name: str) -> None:
    function, expected = NATURES[name]
    assert find_nature(function, torch.zeros(2, 3, 4, 6, dtype=DTYPE)) == expected


# Style "transpose"


MAPS = CONVS | {
    "linear": (lambda: nn.Linear(4, 5), (4,)),
    "linear, sequences": (lambda: nn.Linear(4, 5, bias=False), SERIES[::-1]),
    "product": (lambda: Function(lambda x, m: x @ m.weight, nn.Linear(3, 4, bias=False)), (3, 4)),
}
SELECT = {
    "max": (lambda: nn.MaxPool2d(2), IMAGE),
    "max, overlapping": (lambda: nn.MaxPool2d(3, stride=2, padding=1), IMAGE),
    "max, dilated": (lambda: nn.MaxPool2d(2, stride=1, dilation=2), IMAGE),
    "max, rest kept": (lambda: nn.MaxPool2d(2, ceil_mode=True), IMAGE),
    "max, one axis": (lambda: nn.MaxPool1d(3, 2, 1), SERIES),
    "max, three axes": (lambda: nn.MaxPool3d(2), (2, 4, 3, 2)),
}
APART = {  # without overlap: what returns constants is the pseudo-inverse
    "average": (lambda: nn.AvgPool2d(2), IMAGE),
    "average, padding not counted": (lambda: nn.AvgPool2d(2, padding=1, count_include_pad=False), IMAGE),
    "average, gaps": (lambda: nn.AvgPool2d(1, stride=2), IMAGE),
    "average, global": (lambda: nn.AdaptiveAvgPool2d(1), IMAGE),
    "average of tokens": (lambda: Function(lambda x: x.mean(1)), SERIES),
    "nearest": (lambda: nn.Upsample(scale_factor=2), IMAGE),
    "shuffle": (lambda: nn.PixelShuffle(2), IMAGE),
    "first token": (lambda: Function(lambda x: x[:, 0]), SERIES),
    "flatten": (lambda: nn.Flatten(), IMAGE),
    "flip": (lambda: Function(lambda x: x.flip(1)), SERIES),
    "two rows in one": (lambda: Function(lambda x: x.reshape(-1, 8)), (4,)),
}
AVERAGES = APART | {
    "average, overlapping": (lambda: nn.AvgPool2d(3, stride=2, padding=1), IMAGE),
    "average, rest kept": (lambda: nn.AvgPool2d(2, ceil_mode=True, divisor_override=3), IMAGE),
    "average, adaptive": (lambda: nn.AdaptiveAvgPool2d((3, 4)), IMAGE),
    "bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE),
}
OTHERS = {
    "layer norm": (lambda: nn.LayerNorm(4), (3, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 4), IMAGE),
    "instance norm": (lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), IMAGE),
    "batch norm in eval mode": (lambda: nn.BatchNorm2d(4).eval(), IMAGE),
    "dropout": (lambda: nn.Dropout(0.4), IMAGE),
    "dropout of channels": (lambda: nn.Dropout2d(0.4), IMAGE),
    "in place": (lambda: nn.Sequential(nn.Linear(4, 4), nn.ELU(inplace=True), nn.Linear(4, 4)), (4,)),
    "softmax": (lambda: nn.Softmax(dim=-1), SERIES),
    "fused attention": (lambda: Function(lambda x: functional.scaled_dot_product_attention(x, x, x)), SERIES),
    "block": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, 2), nn.GroupNorm(2, 6), nn.ReLU(), nn.MaxPool2d(2, 1)), IMAGE),
    "layer": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.LayerNorm(6), nn.Dropout(0.3)), SERIES),
}
ACTIVATIONS = [
    nn.Tanh(), nn.Sigmoid(), nn.ReLU(), nn.LeakyReLU(0.2), nn.PReLU(4, 0.3), nn.ELU(0.7), nn.CELU(1.6), nn.SELU(),
    nn.Softplus(beta=2.0), nn.LogSigmoid(), nn.Softsign(), nn.Hardtanh(-0.8, 1.2), nn.ReLU6(), nn.Hardsigmoid(),
    nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Tanhshrink(), nn.Hardshrink(), nn.RReLU(),
]  # fmt: skip
MODULES = MAPS | SELECT | AVERAGES | OTHERS | {type(m).__name__: (lambda m=m: m, (4,)) for m in ACTIVATIONS}


@pytest.mark.parametrize("name", MODULES)
def test_style_transpose_with_the_forward_weights_is_the_transpose(name: str) -> None:
    make, shape = MODULES[name]
    module, x = rough(make()), rand(6, *shape)
    found = bind(module, x, "transpose")
    found.read_weights()
    change, y = rand(*found.layer.h.shape, seed=1), found.layer.h
    expected = pulled(module, x, change)
    assert relative(found.g.difference(y, change), expected) < 1e-7  # some constants of torch are float32
    assert relative(found.g(y + change) - found.g(y), expected) < 1e-7


@pytest.mark.parametrize("name", MAPS)
def test_decoders_of_maps_draw_their_own_weights_and_keep_the_size_of_changes(name: str) -> None:
    make, shape = MAPS[name]
    module = make()
    found = bind(module, rand(20, *shape))
    change, before = rand(*found.layer.h.shape, seed=1), found.g(found.layer.h)
    assert 0.2 < float(found.g.difference(found.layer.h, change).detach().square().mean().sqrt()) < 1.0
    for p in module.parameters():
        p.data.normal_()
    assert torch.equal(found.g(found.layer.h), before)


# Styles "identity" and "inverse"


@pytest.mark.parametrize("style", ["identity", "inverse"])
@pytest.mark.parametrize("name", AVERAGES)
def test_constants_come_back_exactly(name: str, style: str) -> None:
    f, shape = AVERAGES[name][0](), AVERAGES[name][1]
    found = bind(f, rand(2, *shape), style)
    g, h, ones = found.g.difference, found.layer.h, torch.ones(2, *shape, dtype=DTYPE)
    seen = pulled(f, ones, torch.ones_like(h)) != 0
    assert relative(g(h, f(ones)), seen.to(DTYPE)) < 1e-12
    if name in APART:  # J g J = J, and g J is symmetric
        a, b = rand(2, *shape, seed=1), rand(2, *shape, seed=2)
        assert relative(f(g(h, f(a))), f(a)) < 1e-12
        assert torch.allclose((b * g(h, f(a))).sum(), (a * g(h, f(b))).sum(), rtol=1e-10)


@pytest.mark.parametrize("style", ["identity", "inverse"])
@pytest.mark.parametrize("name", SELECT)
def test_selected_values_go_back_to_their_places(name: str, style: str) -> None:
    f, x = SELECT[name][0](), rand(4, *SELECT[name][1])
    found = bind(f, x, style)
    back, selected = found.g(found.layer.h), pulled(f, x, torch.ones_like(found.layer.h)) != 0
    assert torch.allclose(back[selected], x[selected], rtol=1e-14) and not back[~selected].any()


@pytest.mark.parametrize(("style", "expected"), [("identity", [0.0, 3, 0, 4]), ("transpose", [0.0, 6, 0, 4])])
def test_a_place_that_two_windows_select_gets_their_mean_or_their_sum(style: str, expected: list[float]) -> None:
    x = torch.tensor([[[0.0, 3.0, 1.0, 2.0]]] * 2, dtype=DTYPE)
    found = bind(nn.MaxPool1d(2, stride=1), x, style)
    assert found.g(torch.tensor([[[1.0, 5.0, 4.0]]] * 2, dtype=DTYPE))[0, 0].tolist() == expected


KEEPERS = [nn.Tanh(), nn.GELU(), nn.LayerNorm(4), nn.BatchNorm1d(4), nn.Softmax(-1), Function(torch.sign)]


@pytest.mark.parametrize("module", KEEPERS)
def test_style_identity_leaves_what_keeps_the_shape_to_the_learned_map(module: nn.Module) -> None:
    found = bind(nn.Sequential(module, nn.Linear(4, 4)), rand(5, 4))
    V, c = found.engine.bank.parameters()
    assert torch.allclose(found.g(found.layer.h), found.layer.h @ V.T + c, rtol=1e-14)


INVERTED = {
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "leaky relu": nn.LeakyReLU(0.2),
    "leaky relu in place": Function(lambda x: functional.leaky_relu_(x * 1, 0.2)),
    "elu": nn.ELU(0.7),
    "softplus": nn.Softplus(beta=2.0),
    "softsign": nn.Softsign(),
    "affine": Function(lambda x: 3 - 2 * x),
    "batch norm": nn.BatchNorm1d(4),
    "batch norm in eval mode": nn.BatchNorm1d(4).eval(),
    "batch norm without gain": nn.BatchNorm1d(4, affine=False),
}


@pytest.mark.parametrize("name", INVERTED)
def test_style_inverse_inverts_on_the_range_and_is_finite_beyond(name: str) -> None:
    found = bind(rough(INVERTED[name]), rand(6, 4), "inverse")
    elsewhere = found.layer.x + 0.5 * rand(6, 4, seed=2)
    assert relative(found.g(found.layer.h), found.layer.x) < 1e-12
    assert relative(found.g(found.layer.f(elsewhere)), elsewhere) < 1e-12
    for value in (-1e3, -1.0, 0.0, 1.0, 1e3):
        assert torch.isfinite(found.g(torch.full_like(elsewhere, value))).all()


@pytest.mark.parametrize("module", [nn.ReLU(), nn.LeakyReLU(0.0), nn.PReLU(), nn.SELU(), nn.Hardshrink(), nn.GELU()])
def test_style_inverse_leaves_values_that_it_cannot_invert(module: nn.Module) -> None:
    found = bind(module, rand(6, 4), "inverse")
    assert torch.equal(found.g(found.layer.h), found.layer.h)


def test_batch_statistics_are_those_of_the_pass() -> None:
    norm, x, change = rough(nn.BatchNorm1d(4)), rand(6, 4), rand(6, 4, seed=1)
    norm.weight.data[2] = 0.0
    slope = norm.weight.detach() / (x.var(0, unbiased=False) + norm.eps).sqrt()
    back = torch.where(slope == 0, 0.0, 1 / slope)  # a gain of zero carries no target
    for style, factor in (("transpose", slope), ("inverse", back)):
        found = bind(norm, x, style)
        assert relative(found.g.difference(found.layer.h, change), factor * change) < 1e-12


# Every style


def fused(x: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(*x.unsqueeze(1).chunk(3, dim=-1)).squeeze(1)


def plain(x: Tensor) -> Tensor:
    q, k, v = x.chunk(3, dim=-1)
    return (q @ k.mT / 3**0.5).softmax(-1) @ v


@pytest.mark.parametrize("style", ["identity", "transpose"])
def test_maps_on_both_sides_of_attention_are_trained_through_it(style: str) -> None:
    below, x, c, change = nn.Linear(4, 9), rand(6, 3, 4), rand(6, 3, 4, seed=4), rand(6, 3, 5, seed=3)
    found = bind(nn.Sequential(below, Function(fused), nn.Linear(3, 5)), x, style)
    V, U = (p for p in found.engine.bank.parameters() if p.dim() == 2)
    h, back = below(x).detach(), (c @ V).detach()
    (c * found.g.difference(found.layer.h, change)).sum().backward()
    pushed = torch.autograd.functional.jvp(plain, h, back)[1]
    assert relative(U.grad, torch.einsum("npi,npo->io", pushed, change)) < 1e-10


@pytest.mark.parametrize("style", ["identity", "inverse", "transpose"])
@pytest.mark.parametrize("name", ["two of everything", "block", "layer"])
def test_the_contract_of_decoders(name: str, style: str) -> None:
    class Contract(DecoderContract):
        def module(self) -> nn.Module:
            return MODULES[name][0]()

        def example(self) -> Tensor:
            return rand(5, *MODULES[name][1])

    Contract.style = style
    for test in (name for name in dir(DecoderContract) if name.startswith("test_")):
        getattr(Contract(), test)()


@pytest.mark.parametrize("style", ["identity", "inverse", "transpose"])
def test_the_first_samples_of_a_pass_are_decoded_as_among_all(style: str) -> None:
    modules = [nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.3), nn.Tanh(), nn.MaxPool2d(2, 1), nn.Flatten()]
    found, change = bind(nn.Sequential(*modules), rand(6, *IMAGE), style), rand(6, 60, seed=1)
    few, y = found.layer.head(2), found.layer.h
    g = found.engine.bank.inverse(few)
    assert torch.allclose(g(few.h), found.g(y)[:2], rtol=1e-12)
    assert torch.allclose(g.difference(few.h, change[:2]), found.g.difference(y, change)[:2], rtol=1e-9)


def test_a_layer_that_makes_other_calls_than_its_decoder_was_made_for_is_named() -> None:
    module = nn.Sequential(nn.Linear(4, 4))
    engine = bind(module, rand(3, 4)).engine
    module.append(nn.Linear(4, 4, dtype=DTYPE))
    layer = engine.record(rand(3, 4)).layers[1]
    with pytest.raises(ValueError, match="layer layer makes other calls now than when its decoder was made"):
        engine.bank.inverse(layer)(layer.h)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ELU()])
def test_the_forward_style_uses_the_activation_before_the_learned_map(activation: nn.Module) -> None:
    """``g(y) = Ω σ(y) + c`` where the activation stands before the map, and where it stands after it."""
    for module, width in (
        (nn.Sequential(activation, nn.Linear(4, 3)), 3),
        (nn.Sequential(nn.Linear(4, 3), activation), 3),
    ):
        found = bind(module, rand(6, 4), "forward")
        y, (V, c) = rand(6, width, seed=3), found.engine.bank.parameters()
        assert torch.allclose(found.g(y), activation(y) @ V.T + c, rtol=1e-12)


def test_reconstruction_without_noise_compares_with_the_input_itself() -> None:
    found = bind(nn.Linear(4, 3), rand(6, 4), tp.Denoising(noise=0.0))
    loss = found.engine.method.decoder.layer_loss(*found.given, found.noise())
    assert torch.allclose(loss, (found.g(found.layer.h) - found.layer.x).square().sum() / 6, rtol=1e-12)


class Sums(nn.Module):
    """Adds up in place, in memory that it makes."""

    def forward(self, x: Tensor) -> Tensor:
        total = torch.ones(x.shape, dtype=DTYPE)
        total += x.tanh()
        total[:, 0] *= 2.0
        return total * x


def test_what_is_written_in_place_is_written_anew_at_every_repetition() -> None:
    found, x = bind(Sums(), rand(6, 4), "identity"), rand(6, 4, seed=5)
    expected = Sums()(x)
    for _ in range(3):
        assert torch.equal(found.layer.f(x), expected)
