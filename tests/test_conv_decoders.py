"""Decoders of convolutional networks: against autograd and dense Jacobians, trained on noise, and in whole networks."""

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import DTYPE, LOSSES, TRANSPOSE, backprop, gradients, rand, relative
from targetprop.decoders.objective import Noise
from targetprop.layers.forward_pass import run_forward
from targetprop.testing import DecoderContract
from targetprop.updates import Update


def bound(module: nn.Module, style: str, x: Tensor) -> tuple:
    """Return the decoder that the engine gives a module, bound to a forward pass on ``x``, and the record."""

    class Probe(DecoderContract):
        pass

    Probe.style, Probe.module = style, lambda self: module
    return Probe().bound(x)[:2]


def pulled(record, change: Tensor) -> Tensor:
    """``Jᵀ change`` at the forward pass, by autograd."""
    x = record.x.clone().requires_grad_()
    return torch.autograd.grad(record.f(x), x, change)[0]


def dense(function, shape: torch.Size) -> Tensor:
    """Matrix of a linear map of one sample, column by column: ``(outputs, inputs)``."""
    unit = torch.eye(shape.numel(), dtype=DTYPE).view(-1, *shape)
    return (function(unit) - function(torch.zeros_like(unit))).flatten(1).T


IMAGE, SERIES = (4, 7, 6), (4, 9)
CONVS = {
    "plain": (lambda: nn.Conv2d(4, 5, 3), IMAGE),
    "padding": (lambda: nn.Conv2d(4, 5, 5, padding=2), IMAGE),
    "stride 2": (lambda: nn.Conv2d(4, 5, 3, stride=2, padding=1), IMAGE),
    "stride 2, even kernel": (lambda: nn.Conv2d(4, 5, 2, stride=2), IMAGE),
    "stride 3, rest 2": (lambda: nn.Conv2d(4, 5, (2, 1), stride=3, bias=False), IMAGE),
    "two of everything": (lambda: nn.Conv2d(4, 6, (3, 2), (1, 2), (0, 1), (2, 1), groups=2), IMAGE),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), IMAGE),
    "dilation": (lambda: nn.Conv2d(4, 5, 3, padding=1, dilation=2), IMAGE),
    "same": (lambda: nn.Conv2d(4, 5, 3, padding="same", dilation=2), IMAGE),
    "same, even kernel": (lambda: nn.Conv2d(4, 5, (4, 2), padding="same"), IMAGE),
    "valid": (lambda: nn.Conv2d(4, 5, 3, padding="valid"), IMAGE),
    "reflect": (lambda: nn.Conv2d(4, 5, 3, padding=(2, 1), padding_mode="reflect"), IMAGE),
    "circular": (lambda: nn.Conv2d(4, 5, 3, padding=1, stride=2, padding_mode="circular"), IMAGE),
    "replicate, same": (lambda: nn.Conv2d(4, 5, (2, 3), padding="same", padding_mode="replicate"), IMAGE),
    "one axis": (lambda: nn.Conv1d(4, 5, 3, stride=2), SERIES),
    "three axes": (lambda: nn.Conv3d(2, 3, 2, stride=2, padding=1), (2, 3, 4, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 5, 3), IMAGE),
    "transposed, stride 2": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2), IMAGE),
    "transposed, dilation": (lambda: nn.ConvTranspose2d(4, 5, 3, 2, 1, 2, dilation=3, bias=False), IMAGE),
    "transposed, one axis": (lambda: nn.ConvTranspose1d(4, 5, 4, stride=3), SERIES),
}


# PyTorch says that this padding may copy its input; nothing else is amiss.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@pytest.mark.parametrize("name", CONVS)
def test_with_the_forward_weights_a_decoder_is_the_transpose(name: str) -> None:
    make, shape = CONVS[name]
    module = make()
    g, record = bound(module, "inverse", rand(3, *shape))
    (weight,) = (p for p in g.decode.__closure__[0].cell_contents.parameters() if p.dim() > 1)
    weight.data.copy_(module.weight.detach())
    change = rand(*record.h.shape, seed=1)
    assert relative(g.difference(record.h, change), pulled(record, change)) < 1e-12


@pytest.mark.parametrize("name", CONVS)
def test_untrained_decoders_neither_explode_nor_vanish(name: str) -> None:
    make, shape = CONVS[name]
    g, record = bound(make(), "inverse", rand(20, *shape))
    change = rand(*record.h.shape, seed=1)
    assert 0.2 < float(g.difference(record.h, change).detach().square().mean().sqrt()) < 1.0


def test_decoders_draw_their_own_weights() -> None:
    conv = nn.Conv2d(4, 5, 3)
    g, record = bound(conv, "inverse", rand(3, *IMAGE))
    before = g(record.h)
    conv.weight.data.normal_()
    assert torch.equal(g(record.h), before)


LEARNED = ["stride 2", "padding", "two of everything", "dilation", "same, even kernel", "reflect", "one axis",
           "transposed, stride 2"]  # fmt: skip


def learning(layers: dict[str, nn.Module], x: Tensor, decoder: tp.DifferenceReconstruction) -> tp.TargetPropagation:
    return tp.TargetPropagation(
        {name: layer.to(DTYPE) for name, layer in layers.items()}, nn.MSELoss(), example_input=x, seed=0,
        method=tp.Method(decoder=decoder), decoder_optimizer=lambda p: torch.optim.Adam(p, lr=0.03),
    )  # fmt: skip


@pytest.mark.parametrize("name", LEARNED)
def test_noise_alone_teaches_a_decoder_the_transpose(name: str) -> None:
    make, shape = CONVS[name]
    torch.manual_seed(0)
    layers, x, steps = {"below": nn.Identity(), "layer": make()}, rand(64, *shape), 80
    made = learning(layers, x, tp.DifferenceReconstruction(w=0.0, damping=1.0))
    for step in range(steps):
        made.decoder_optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        made.train_decoders(x)
    (learned,) = (p for p in made.bank.parameters() if p.dim() > 1)
    assert relative(learned, layers["layer"].weight.detach()) < 0.1


@pytest.mark.parametrize("name", ["two of everything", "transposed, stride 2"])
def test_with_the_matched_penalty_noise_vanishes_at_the_transpose(name: str) -> None:
    make, shape = CONVS[name]
    torch.manual_seed(0)
    layers, x = {"below": nn.Identity(), "layer": make()}, rand(16, *shape)
    made = learning(layers, x, tp.DifferenceReconstruction(w=0.0, damping=1.0, penalty="matched", start="zero"))
    assert not any(p.any() for p in made.bank.parameters())
    for step in range(200):
        made.decoder_optimizer.param_groups[0]["lr"] = 0.03 * 0.97**step
        made.train_decoders(x)
    (learned,) = (p for p in made.bank.parameters() if p.dim() > 1)
    assert relative(learned, layers["layer"].weight.detach()) < 1e-3


# The closed form of the gradient against dense Jacobians of the decoder.


def _norm() -> nn.Module:
    norm = nn.BatchNorm2d(4).eval()
    norm.weight.data = torch.tensor([0.5, 1.0, -2.0, 1.5])
    return norm


FORMS = {
    "bare": lambda: [nn.Conv2d(4, 5, 3, stride=2, padding=1)],
    "groups, same": lambda: [nn.Conv2d(4, 6, (2, 3), padding="same", groups=2, dilation=(1, 2))],
    "block": lambda: [nn.Conv2d(4, 4, 3, padding=1), _norm(), nn.Tanh(), nn.MaxPool2d(2)],
    "pre-activation": lambda: [nn.ELU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 2, groups=2, bias=False)],
    "both sides": lambda: [nn.Sigmoid(), nn.MaxPool2d((1, 2)), nn.Conv2d(4, 6, 2, groups=2), nn.Tanh(), nn.Flatten()],
    "shuffle": lambda: [nn.PixelShuffle(2), nn.Conv2d(1, 2, 3), nn.Dropout(0.3)],
    "transposed": lambda: [nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2), nn.Tanh()],
    "one axis": lambda: [nn.Flatten(2), nn.Conv1d(4, 3, 4, 3), nn.GELU()],
}


FORMS_AND_LINEAR = FORMS | {"linear": lambda: [nn.Flatten(), nn.Tanh(), nn.Linear(4 * 7 * 6, 3), nn.Sigmoid()]}


@pytest.mark.parametrize("penalty", ["expected", "matched"])
@pytest.mark.parametrize(("w", "damping", "relative_"), [(0.0, 1.0, False), (1.0, 0.0, False), (0.7, 0.3, True)])
@pytest.mark.parametrize("name", FORMS_AND_LINEAR)
def test_closed_form_is_the_gradient(name: str, w: float, damping: float, relative_: bool, penalty: str) -> None:
    torch.manual_seed(0)
    x = rand(3, *IMAGE)
    layers = {"below": nn.Identity(), "layer": nn.Sequential(*FORMS_AND_LINEAR[name]())}
    settings = dict(w=w, damping=damping, relative=relative_, activation="transpose", penalty=penalty)
    decoder = tp.DifferenceReconstruction(**settings)
    made = learning(layers, x, decoder)
    record = run_forward(made.chain, x)
    layer, g = record.layers[1], made.bank.inverse(record.layers[1])
    noise = Noise(record, record.layers[1], 0.1, torch.Generator().manual_seed(0))
    signal = decoder.signal(made.bank, record.layers[1:], record, noise)
    assert signal.gradient is not None, "not the closed form"

    eps = noise.like(layer.x)
    change = layer.f(layer.x + eps).detach() - layer.h
    q, lam = g.difference(layer.h, change), damping * float(change.square().mean()) / 0.01 if relative_ else damping
    units = torch.eye(layer.h[0].numel(), dtype=DTYPE)
    columns = [g.difference(layer.h, unit.view(1, *layer.h.shape[1:]).expand_as(layer.h)) for unit in units]
    if penalty == "expected":
        p = sum(column.square().sum() for column in columns)
    else:
        p = sum((column * eps).flatten(1).sum(1).square().sum() for column in columns) / 0.01
    loss = ((w * q.square() - 2 * eps * q).sum() / 0.01 + lam * p) / 3
    (expected,) = torch.autograd.grad(loss, signal.tensor)
    assert relative(signal.loss, loss.detach()) < 1e-10
    assert relative(signal.gradient, expected) < 1e-10


OPEN = {
    "overlapping pool": lambda: [nn.Conv2d(4, 5, 3), nn.MaxPool2d(3, 1)],
    "averages": lambda: [nn.Conv2d(4, 5, 3), nn.AvgPool2d(2)],
    "reflect": lambda: [nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect")],
    "two convolutions": lambda: [nn.Conv2d(4, 5, 3), nn.Tanh(), nn.Conv2d(5, 4, 3)],
    "group norm": lambda: [nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6)],
}


@pytest.mark.parametrize("name", OPEN)
def test_other_decoders_learn_from_samples(name: str) -> None:
    x, layers = rand(3, *IMAGE), {"below": nn.Identity(), "layer": nn.Sequential(*OPEN[name]())}
    decoder = tp.DifferenceReconstruction(w=0.0, damping=1.0, activation="transpose")
    made = learning(layers, x, decoder)
    record = run_forward(made.chain, x)
    noise = Noise(record, record.layers[1], 0.1, torch.Generator().manual_seed(0))
    signal = decoder.signal(made.bank, record.layers[1:], record, noise)
    assert signal.gradient is None
    assert torch.equal(signal.tensor, decoder.layer_loss(made.bank, record.layers[1:], record, noise))


def test_a_users_own_decoder_of_a_block_learns_from_samples() -> None:
    x, layers = rand(3, *IMAGE), {"below": nn.Identity(), "layer": nn.Sequential(nn.Conv2d(4, 5, 3), nn.Tanh())}
    mine, decoder = nn.ConvTranspose2d(5, 4, 3, dtype=DTYPE), tp.DifferenceReconstruction(w=0.0, damping=1.0)
    layers["layer"].to(DTYPE)
    made = tp.TargetPropagation(
        layers, nn.MSELoss(), example_input=x, method=tp.Method(decoder=decoder), decoders={"layer": mine}
    )
    before = mine.weight.detach().clone()
    made.train_decoders(x)
    assert not torch.equal(mine.weight, before)


# Pooling.

SELECT = {
    "max": (lambda: nn.MaxPool2d(2), IMAGE),
    "max, overlapping": (lambda: nn.MaxPool2d(3, stride=2, padding=1), IMAGE),
    "max, dilated": (lambda: nn.MaxPool2d(2, stride=1, dilation=2), IMAGE),
    "max, gaps": (lambda: nn.MaxPool2d((1, 2), stride=(3, 2)), IMAGE),
    "max, rest kept": (lambda: nn.MaxPool2d(2, ceil_mode=True), IMAGE),
    "max, one axis": (lambda: nn.MaxPool1d(3, 2, 1), SERIES),
    "max, three axes": (lambda: nn.MaxPool3d(2), (2, 4, 3, 2)),
    "max, adaptive": (lambda: nn.AdaptiveMaxPool2d((3, 4)), IMAGE),
    "max, adaptive, one axis": (lambda: nn.AdaptiveMaxPool1d(4), SERIES),
}
LINEAR = {
    "average": (lambda: nn.AvgPool2d(2), IMAGE),
    "average, overlapping": (lambda: nn.AvgPool2d(3, stride=2, padding=1), IMAGE),
    "average, padding not counted": (lambda: nn.AvgPool2d(2, padding=1, count_include_pad=False), IMAGE),
    "average, rest kept": (lambda: nn.AvgPool2d(2, ceil_mode=True, divisor_override=3), IMAGE),
    "average, gaps": (lambda: nn.AvgPool2d(1, stride=2), IMAGE),
    "average, one axis": (lambda: nn.AvgPool1d(3), SERIES),
    "average, adaptive": (lambda: nn.AdaptiveAvgPool2d((3, 4)), IMAGE),
    "average, global": (lambda: nn.AdaptiveAvgPool2d(1), IMAGE),
    "average, adaptive, one axis": (lambda: nn.AdaptiveAvgPool1d(3), SERIES),
    "nearest": (lambda: nn.Upsample(scale_factor=2), IMAGE),
    "nearest, smaller": (lambda: nn.Upsample(size=(3, 3)), IMAGE),
    "bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE),
    "bilinear, corners": (lambda: nn.UpsamplingBilinear2d(scale_factor=2), IMAGE),
    "linear": (lambda: nn.Upsample(scale_factor=2, mode="linear"), SERIES),
    "shuffle": (lambda: nn.PixelShuffle(2), IMAGE),
    "unshuffle": (lambda: nn.PixelUnshuffle(2), (2, 4, 6)),
}
# Without overlap, what is not the transpose is the pseudo-inverse.
SEPARATE = ["average", "average, padding not counted", "average, gaps", "average, one axis", "average, global",
            "nearest", "nearest, smaller", "shuffle", "unshuffle"]  # fmt: skip


@pytest.mark.parametrize("name", [*SELECT, *LINEAR])
def test_transpose_style_of_a_pool_is_the_transpose(name: str) -> None:
    make, shape = (SELECT | LINEAR)[name]
    g, record = bound(make(), "transpose", rand(4, *shape))
    change = rand(*record.h.shape, seed=1)
    assert relative(g.difference(record.h, change), pulled(record, change)) < 1e-13


@pytest.mark.parametrize("name", LINEAR)
def test_the_linear_pools_agree_with_their_matrices(name: str) -> None:
    make, shape = LINEAR[name]
    transpose, record = bound(make(), "transpose", rand(2, *shape))
    J = dense(record.f, torch.Size(shape))
    assert relative(dense(transpose, record.h.shape[1:]), J.T) < 1e-12
    inverse, _ = bound(make(), "inverse", rand(2, *shape))
    found = dense(inverse, record.h.shape[1:])
    reached = J.T @ J @ torch.ones(J.shape[1], dtype=DTYPE) != 0
    assert relative((found @ J).sum(1), reached.to(DTYPE)) < 1e-12  # a constant comes back where it was seen
    if name in SEPARATE:
        assert relative(found, torch.linalg.pinv(J)) < 1e-10


@pytest.mark.parametrize("style", ["identity", "inverse"])
@pytest.mark.parametrize("name", SELECT)
def test_unpooling_puts_the_selected_values_back(name: str, style: str) -> None:
    make, shape = SELECT[name]
    g, record = bound(make(), style, rand(4, *shape))
    back, selected = g(record.h), pulled(record, torch.ones_like(record.h)) != 0
    assert torch.allclose(back[selected], record.x[selected], rtol=1e-14) and not back[~selected].any()


def test_shared_places_get_the_mean() -> None:
    x = torch.tensor([[[0.0, 3.0, 1.0, 2.0]]], dtype=DTYPE)  # the 3 is the largest of the first two windows
    y = torch.tensor([[[1.0, 5.0, 4.0]]], dtype=DTYPE)
    for style, expected in (("inverse", [0.0, 3.0, 0.0, 4.0]), ("transpose", [0.0, 6.0, 0.0, 4.0])):
        g, _ = bound(nn.MaxPool1d(2, stride=1), style, x.repeat(2, 1, 1))
        assert g(y.repeat(2, 1, 1))[0, 0].tolist() == expected


def test_pools_that_return_places_are_refused() -> None:
    net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.MaxPool1d(2, return_indices=True), nn.Conv1d(2, 2, 1))
    with pytest.raises(TypeError, match="layer 0: MaxPool1d returned tuple; wrap it in a module"):
        tp.TargetPropagation(net, nn.MSELoss(), example_input=torch.ones(2, 1, 9), method="dtp")


def test_a_pool_over_inputs_without_channels_is_left_to_the_fallback() -> None:
    layers, x = {"below": nn.Linear(8, 8, dtype=DTYPE), "layer": nn.MaxPool1d(2)}, rand(3, 8)
    method = tp.Method(decoder=tp.Denoising())
    made = tp.TargetPropagation(layers, nn.MSELoss(), example_input=x, method=method)
    assert made.bank.kinds()["layer"].startswith("linearised")
    assert torch.isfinite(made.backward(x, rand(3, 4)).loss)


def test_the_record_of_a_part_of_the_batch_keeps_its_places() -> None:
    g, record = bound(nn.MaxPool2d(2), "transpose", rand(4, *IMAGE))
    part = record.head(2)
    assert part.states[0].per_sample[0].shape == part.h.shape == (2, 4, 3, 3)
    assert torch.equal(part.f(part.x), record.h[:2])


# Norms and dropout on images.


def rough(module: nn.Module) -> nn.Module:
    """Give a norm gains, biases and statistics that matter."""
    module = module.to(DTYPE)
    for i, t in enumerate((*module.parameters(), *module.buffers())):
        if t.is_floating_point():
            t.data.add_(0.5 * rand(*t.shape, seed=i).abs())
    return module


NORMS = {
    "group": (lambda: nn.GroupNorm(2, 4), IMAGE),
    "group, no gain": (lambda: nn.GroupNorm(2, 4, affine=False), IMAGE),
    "group of all, one axis": (lambda: nn.GroupNorm(1, 4), SERIES),
    "group, no axis": (lambda: nn.GroupNorm(2, 4), (4,)),
    "instance": (lambda: nn.InstanceNorm2d(4), IMAGE),
    "instance, gain": (lambda: nn.InstanceNorm1d(4, affine=True), SERIES),
    "instance, tracked": (lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), IMAGE),
    "instance, tracked, eval": (lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True).eval(), IMAGE),
    "batch, training": (lambda: nn.BatchNorm2d(4), IMAGE),
    "batch, eval": (lambda: nn.BatchNorm2d(4).eval(), IMAGE),
    "batch, no gain": (lambda: nn.BatchNorm2d(4, affine=False), IMAGE),
}
DROPOUTS = {"channels": (lambda: nn.Dropout2d(0.4), IMAGE), "channels, one axis": (lambda: nn.Dropout1d(0.4), SERIES)}


@pytest.mark.parametrize("name", [*NORMS, *DROPOUTS])
def test_transpose_style_of_norms_and_dropout_is_the_transpose(name: str) -> None:
    make, shape = (NORMS | DROPOUTS)[name]
    g, record = bound(rough(make()), "transpose", rand(6, *shape))
    change = rand(*record.h.shape, seed=1)
    assert relative(g.difference(record.h, change), pulled(record, change)) < 1e-10
    assert torch.equal(record.f(record.x), record.h) or relative(record.f(record.x), record.h) < 1e-14


@pytest.mark.parametrize("name", NORMS)
def test_inverse_style_undoes_norms(name: str) -> None:
    make, shape = NORMS[name]
    g, record = bound(rough(make()), "inverse", rand(6, *shape))
    assert relative(g(record.h), record.x) < 1e-12
    if name.startswith("batch"):  # statistics are fixed: the inverse holds everywhere
        elsewhere = record.x + rand(*record.x.shape, seed=2)
        assert relative(g(record.f(elsewhere)), elsewhere) < 1e-12


def test_replaying_an_instance_norm_moves_no_running_statistics() -> None:
    norm = nn.InstanceNorm2d(4, track_running_stats=True).to(DTYPE)
    _, record = bound(norm, "inverse", rand(6, *IMAGE))
    before = norm.running_mean.clone()
    assert torch.equal(record.f(record.x), record.h) and torch.equal(norm.running_mean, before)


# Contracts.


BLOCK = (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, 2), nn.GroupNorm(2, 6), nn.ReLU(), nn.MaxPool2d(2, 1)), IMAGE)
PROMISES = {**CONVS, **SELECT, **LINEAR, **NORMS, **DROPOUTS, "block": BLOCK}


@pytest.mark.parametrize("style", ["inverse", "transpose"])
@pytest.mark.parametrize("name", PROMISES)
def test_contract(name: str, style: str) -> None:
    make, shape = PROMISES[name]

    class Contract(DecoderContract):
        def module(self) -> nn.Module:
            return make()

        def example(self) -> Tensor:
            return rand(5, *shape)

    Contract.style = style
    for test in (name for name in dir(DecoderContract) if name.startswith("test_")):
        getattr(Contract(), test)()


# Whole networks.


def _vgg() -> list[nn.Module]:
    return [
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4).eval(), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3, padding="same"), nn.GroupNorm(1, 5), nn.ELU(), nn.Dropout2d(0.3), nn.MaxPool2d(2, 1),
        nn.Conv2d(5, 4, 2, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3),
    ]  # fmt: skip


def _up() -> list[nn.Module]:
    return [
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.InstanceNorm2d(4), nn.GELU(),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(4, 8, 3, dilation=2, padding_mode="circular", padding=2), nn.PixelShuffle(2), nn.Tanh(),
        nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1), nn.ELU(), nn.AvgPool2d(3, 2, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3),
    ]  # fmt: skip


def _series() -> list[nn.Module]:
    return [
        nn.Flatten(2), nn.Conv1d(2, 4, 5, stride=2), nn.Softplus(), nn.MaxPool1d(3, 2, 1), nn.ConvTranspose1d(4, 3, 2),
        nn.AdaptiveMaxPool1d(4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3),
    ]  # fmt: skip


NETS = {"vgg": _vgg, "up": _up, "series": _series}
CUTS = ["post-activation", "pre-activation"]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("update", [tp.Gradient(), tp.DeltaRule(), tp.LeastSquares()])
@pytest.mark.parametrize("name", NETS)
def test_transposes_give_the_gradient(name: str, update: Update, cut: str) -> None:
    torch.manual_seed(0)
    net, x, loss = nn.Sequential(*NETS[name]()).to(DTYPE), rand(6, 2, 6, 6), LOSSES["cross-entropy"]
    y = loss.labels(6)
    expected = backprop(net, loss.loss, x, y)
    method = tp.Method(decoder=TRANSPOSE, cut=cut, update=update, output_target=tp.GradientStep(1e-3))
    made = tp.TargetPropagation(net, loss.loss, example_input=x, method=method)
    torch.manual_seed(0)
    made.backward(x, y)
    found, rest = gradients(net), sum(p.numel() for p in net[-1].parameters())
    if isinstance(update, tp.Gradient):
        assert relative(found, expected) < 1e-10
    else:  # layers without a Linear are left to the gradient
        assert relative(found[:-rest], expected[:-rest]) < 1e-10
        assert relative(found[-rest:], expected[-rest:]) > 1e-3
