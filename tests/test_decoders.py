"""Decoders: closed forms against autograd, the linearised decoder against dense algebra, registry, and training."""

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import DTYPE, NETWORKS, rand, relative
from targetprop import diagnostics
from targetprop.decoders import find_builder
from targetprop.decoders.linearised import LinearisedDecoder
from targetprop.layers.forward_pass import Record, run_forward
from targetprop.testing import DecoderContract

MONOTONE = {
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "relu": nn.ReLU(),
    "leaky": nn.LeakyReLU(0.2),
    "prelu": nn.PReLU(4, 0.3),
    "elu": nn.ELU(0.7),
    "celu": nn.CELU(1.6),
    "selu": nn.SELU(),
    "softplus": nn.Softplus(beta=2.0),
    "log-sigmoid": nn.LogSigmoid(),
    "softsign": nn.Softsign(),
    "hardtanh": nn.Hardtanh(-0.8, 1.2),
    "relu6": nn.ReLU6(),
    "hard-sigmoid": nn.Hardsigmoid(),
}
OTHERS = {
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "hardswish": nn.Hardswish(),
    "shrink": nn.Tanhshrink(),
}
NORMS = {
    "batch norm, training": lambda: nn.BatchNorm1d(4),
    "batch norm, eval": lambda: nn.BatchNorm1d(4).eval(),
    "batch norm without gain": lambda: nn.BatchNorm1d(4, affine=False),
    "layer norm": lambda: nn.LayerNorm(4),
    "layer norm without gain": lambda: nn.LayerNorm(4, elementwise_affine=False),
}
LINEAR = {"dropout": lambda: nn.Dropout(0.4), "dropout, eval": lambda: nn.Dropout(0.4).eval(), "identity": nn.Identity}


def probe(module: nn.Module, style: str, x: Tensor) -> tuple:
    """Return the decoder that the engine gives a module, bound to a forward pass on ``x``, and the record."""

    class Probe(DecoderContract):
        pass

    Probe.style, Probe.module = style, lambda self: module
    g, record, _ = Probe().bound(x)
    return g, record


def jacobian(function, y: Tensor) -> Tensor:
    """Dense per-sample Jacobian of a batch map whose samples are independent."""
    full = torch.autograd.functional.jacobian(lambda v: function(v).sum(0), y)  # (d_out, n, d_in)
    return full.flatten(2).transpose(0, 1)


def roughen(module: nn.Module) -> nn.Module:
    """Give a norm gains, biases and statistics that matter."""
    module = module.to(DTYPE)
    for i, t in enumerate((*module.parameters(), *module.buffers())):
        if t.is_floating_point():
            t.data.add_(0.5 * rand(*t.shape, seed=i).abs())
    return module


@pytest.mark.parametrize("name", MONOTONE)
def test_inverse_style_inverts_on_the_range(name: str) -> None:
    x = rand(6, 4)
    if name in ("relu", "relu6", "hardtanh"):
        x = x.abs().clamp(0.1, 0.7)  # elsewhere they lose the value
    g, record = probe(MONOTONE[name], "inverse", x)
    assert (g(record.h) - x).abs().max() < 1e-8


@pytest.mark.parametrize("name", [n for n in MONOTONE if n not in ("relu", "relu6", "hardtanh")])
def test_inverse_style_is_finite_at_and_beyond_the_edge_of_the_range(name: str) -> None:
    g, record = probe(MONOTONE[name], "inverse", rand(6, 4))
    for value in (-1e3, -1.0, 0.0, 1.0, 1e3):
        assert torch.isfinite(g(torch.full_like(record.h, value))).all()


def test_inverse_of_a_leaky_relu_without_slope_is_finite() -> None:
    g, record = probe(nn.LeakyReLU(0.0), "inverse", rand(6, 4))
    assert torch.isfinite(g(record.h)).all() and torch.isfinite(g(record.h - 0.1)).all()


@pytest.mark.parametrize("name", [*MONOTONE, *OTHERS])
def test_transpose_style_has_the_slope_of_the_forward_pass(name: str) -> None:
    module = (MONOTONE | OTHERS)[name].to(DTYPE)
    x = rand(6, 4)
    g, record = probe(module, "transpose", x)
    z = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(module(z).sum(), z)
    change = rand(6, 4, seed=1)
    assert torch.allclose(
        g.difference(record.h, change), slope * change, rtol=1e-7, atol=0
    )  # torch rounds some constants to float32


@pytest.mark.parametrize("name", [*NORMS, *LINEAR])
def test_linear_modules_transpose_is_the_dense_transpose(name: str) -> None:
    g, record = probe(roughen((NORMS | LINEAR)[name]()), "transpose", rand(6, 4))
    J = jacobian(record.f, record.x)
    change = rand(6, 4, seed=1)
    expected = (J.mT @ change.unsqueeze(2)).squeeze(2)
    assert torch.allclose(g.difference(record.h, change), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in NORMS])
def test_norms_inverse_undoes_them(name: str) -> None:
    g, record = probe(roughen(NORMS[name]()), "inverse", rand(6, 4))
    assert (g(record.h) - record.x).abs().max() < 1e-12
    if name.startswith("batch"):  # statistics are fixed: the inverse holds everywhere
        elsewhere = record.x + rand(6, 4, seed=2)
        assert (g(record.f(elsewhere)) - elsewhere).abs().max() < 1e-12


def test_norm_with_a_zero_gain_carries_no_target_there() -> None:
    norm = nn.LayerNorm(4).to(DTYPE)
    norm.weight.data[2] = 0.0
    g, record = probe(norm, "inverse", rand(6, 4))
    moved = g.difference(record.h, torch.ones_like(record.h))
    assert (moved[:, 2] == 0).all() and (moved[:, [0, 1, 3]] > 0).all()


def test_dropped_units_carry_no_target() -> None:
    g, record = probe(nn.Dropout(0.4), "inverse", rand(6, 4))
    kept = record.h != 0
    assert 0 < kept.sum() < kept.numel()
    moved = g.difference(record.h, torch.ones_like(record.h))
    assert torch.allclose(moved, 0.6 * kept.to(DTYPE), rtol=1e-12)


class TestTanhDecoder(DecoderContract):
    def module(self) -> nn.Module:
        return nn.Tanh()


class TestLinearDecoder(DecoderContract):
    def module(self) -> nn.Module:
        return nn.Linear(4, 3)


class TestBlockDecoder(DecoderContract):
    style = "transpose"

    def module(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.LayerNorm(6), nn.ELU(), nn.Dropout(0.3))

    def example(self) -> Tensor:
        return rand(5, 2, 2)


class TestBatchNormDecoder(DecoderContract):
    def module(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Sigmoid())


# The linearised decoder against dense algebra.


@pytest.mark.parametrize(("w", "damping"), [(1.0, 0.0), (1.0, 0.2), (0.3, 1.5), (0.0, 1.0), (0.0, 0.5)])
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 6), (6, 3), (4, 4)])
def test_linearised_decoder_is_the_dense_damped_inverse(w: float, damping: float, inputs: int, outputs: int) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(2, inputs), nn.Linear(inputs, outputs), nn.Tanh()).to(DTYPE)
    record = run_forward(tp.build_chain(net), rand(5, 2))
    g = LinearisedDecoder(w, damping).bind(record.layers[1])
    dense = diagnostics.damped_inverse(diagnostics.layer_jacobians(record)[1], w, damping)
    change = rand(5, outputs, seed=4)
    expected = (dense @ change.unsqueeze(2)).squeeze(2)
    assert relative(g.difference(record.layers[1].h, change), expected) < 1e-9
    assert relative(g(record.layers[1].h + change), record.layers[1].x + expected) < 1e-9


def test_linearised_decoder_of_a_singular_layer_is_the_pseudo_inverse() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(DTYPE)
    net[1].weight.data = rand(4, 2) @ rand(2, 4, seed=1)
    record = run_forward(tp.build_chain(net), rand(5, 4))
    change = rand(5, 4, seed=4)
    found = LinearisedDecoder(1.0, 0.0).bind(record.layers[1]).difference(record.layers[1].h, change)
    assert relative(found, change @ torch.linalg.pinv(net[1].weight.detach(), rtol=1e-10).T) < 1e-8


# Registry.


class Scale(nn.Linear):
    """A map of the user's own."""


class SmallScale(Scale):
    """Derived from it."""


class Unknown(nn.Module):
    """A module that nobody registered."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4, dtype=DTYPE) * 2)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@tp.register_decoder(Scale)
def _scale(module: nn.Module, x: Tensor, y: Tensor, style: str) -> nn.Module:
    return nn.Linear(y.shape[1], x.shape[1], dtype=y.dtype)


def test_lookup_follows_the_class_hierarchy() -> None:
    assert find_builder(SmallScale(2, 2)) is find_builder(Scale(2, 2)) is _scale
    assert find_builder(nn.Linear(2, 2)) is not _scale
    assert find_builder(Unknown()) is None


def test_silent_overwrite_is_refused() -> None:
    with pytest.raises(ValueError, match="Scale has a decoder already; derive a class"):
        tp.register_decoder(Scale)


def engine(net: nn.Module, x: Tensor, decoder=None, **more) -> tp.TargetPropagation:
    method = tp.Method(decoder=decoder or tp.Denoising(), propagation=more.pop("propagation", "layerwise"))
    return tp.TargetPropagation(net, nn.MSELoss(), example_input=x, method=method, seed=0, **more)


def test_unregistered_layers_fall_back_to_damped_least_squares() -> None:
    net, x = nn.Sequential(nn.Linear(4, 4), Unknown(), nn.Linear(4, 3)).to(DTYPE), rand(5, 4)
    made = engine(net, x)
    assert made.bank.kinds() == {"1": "linearised, w=1, damping=0.1", "2": "learned"}
    record = run_forward(made.chain, x)
    change = rand(5, 4, seed=1)
    found = made.bank.inverse(record.layers[1]).difference(record.layers[1].h, change)
    assert torch.allclose(found, change * 2 / (4 + 0.1), rtol=1e-12)


CUSTOM = [
    ({"9": nn.Linear(6, 4)}, "decoders names layer '9', but the layers are 0, 2, 4"),
    ({"0": nn.Linear(6, 4)}, "'0', the first one, which is never inverted"),
    ({"4": nn.Linear(3, 4, dtype=DTYPE)}, r"decoder of layer 4 returns \(2, 4\), and the input .* shape \(2, 5\)"),
]


@pytest.mark.parametrize(("decoders", "message"), CUSTOM)
def test_wrong_decoders_are_named(decoders, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine(NETWORKS["tanh"].build(), rand(5, 4), decoders=decoders)


def test_a_custom_decoder_serves_the_layer_of_its_name() -> None:
    mine = nn.Linear(3, 5, dtype=DTYPE)
    made = engine(NETWORKS["tanh"].build(), rand(5, 4), decoders={"4": mine})
    record = run_forward(made.chain, rand(5, 4))
    y = rand(5, 3, seed=2)
    assert torch.equal(made.bank.inverse(record.layers[2])(y), mine(y))
    before = mine.weight.detach().clone()
    made.train_decoders(rand(5, 4))
    assert not torch.equal(mine.weight, before)  # trained with the others


def test_decoders_never_read_the_forward_weights() -> None:
    net, x = (
        nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)),
        rand(5, 4),
    )
    net = net.to(DTYPE)
    made = engine(net, x, tp.Denoising(activation="transpose"))
    record = run_forward(made.chain, x)
    ys = [rand(*layer.h.shape, seed=7) for layer in record.layers]
    before = [made.bank.inverse(record.layers[i])(ys[i]) for i in (1, 2)]
    for module in net:
        if isinstance(module, nn.Linear):
            module.weight.data.normal_()
            module.bias.data.normal_()
    assert all(torch.equal(made.bank.inverse(record.layers[i])(ys[i]), b) for i, b in zip((1, 2), before, strict=True))


# Objectives.


def reached(bank: nn.Module, loss: Tensor) -> set[str]:
    """Return which decoders a loss has a gradient for, by the key of their layer."""
    names, parameters = zip(*bank.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name.split(".")[1] for name, g in zip(names, found, strict=True) if g is not None and g.any()}


def losses(made: tp.TargetPropagation, x: Tensor) -> tuple[Record, list[Tensor]]:
    from targetprop.decoders.objective import Noise

    record, decoder = run_forward(made.chain, x), made.method.decoder
    noises = [Noise(record, layer, 0.1, torch.Generator().manual_seed(0)) for layer in record.inverted]
    return record, [
        decoder.layer_loss(made.bank, record.layers[i:], record, noise) for i, noise in enumerate(noises, start=1)
    ]


@pytest.mark.parametrize(
    "decoder", [tp.Denoising(), tp.DifferenceReconstruction(damping=0.1), tp.GlobalReconstruction()]
)
def test_each_loss_trains_its_own_decoder_only(decoder) -> None:
    made = engine(NETWORKS["tanh"].build(), rand(5, 4), decoder)
    _, found = losses(made, rand(5, 4))
    assert [reached(made.bank, loss) for loss in found] == [{"2"}, {"4"}]


def test_direct_feedback_trains_one_map_per_layer() -> None:
    made = engine(NETWORKS["tanh"].build(), rand(5, 4), tp.DirectFeedback(), propagation="composite")
    record, found = losses(made, rand(5, 4))
    assert [reached(made.bank, loss) for loss in found] == [{"2"}, {"4"}]
    assert [tuple(m.weight.shape) for m in made.bank.maps.values()] == [(6, 3), (5, 3)]
    a, b = rand(5, 3, seed=1), rand(5, 3, seed=2)
    g = made.bank.composite(record.layers[2:])
    assert torch.allclose(g.difference(a, b), g(a + b) - g(a), rtol=1e-10)
    with pytest.raises(ValueError, match="propagation='composite'"):
        made.bank.inverse(record.layers[1])
    with pytest.raises(ValueError, match="choose the propagation 'composite'"):
        tp.Method(decoder=tp.DirectFeedback())


def test_global_reconstruction_learns_the_damped_inverse_of_everything_above() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)).to(DTYPE)
    for i, m in enumerate(net):
        m.weight.data = torch.eye(3, dtype=DTYPE) + 0.3 * rand(3, 3, seed=i)
    x = rand(256, 3)
    made = engine(net, x, tp.GlobalReconstruction(damping=0.2, lr=0.05))
    schedule = torch.optim.lr_scheduler.ExponentialLR(made.decoder_optimizer, 0.98)
    for _ in range(250):
        made.train_decoders(x)
        schedule.step()
    record = run_forward(made.chain, x)
    for index, J in ((2, net[2].weight), (1, net[2].weight @ net[1].weight)):
        eye = torch.eye(3, dtype=DTYPE).repeat(86, 1)[:256]
        found = made.bank.composite(record.layers[index:]).difference(record.output, eye)[:3].T
        assert relative(found, diagnostics.damped_inverse(J.detach(), 1.0, 0.2)) < 0.06


def test_ridge_is_the_damped_least_squares_solution() -> None:
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).to(DTYPE), rand(50, 4)
    made = engine(net, x, tp.Ridge(damping=0.01, noise=0.3, decay=0.0, every=1))
    drawn = torch.Generator()
    drawn.set_state(made.state_dict()["generators"]["2"])
    made.train_decoders(x)
    (linear,) = (m for m in made.bank.modules() if isinstance(m, nn.Linear))
    from targetprop.decoders.objective import Noise

    record = run_forward(made.chain, x)
    noise = Noise(record, record.layers[1], 0.3, drawn).like(record.layers[1].x)
    clean = (record.layers[1].x + noise).detach()
    a = torch.cat([record.layers[1].f(clean).detach(), torch.ones(50, 1, dtype=DTYPE)], dim=1)
    ridge = 0.01 * 50 * (a.square().sum() / 50 / 4)
    stacked = torch.cat([a, ridge.sqrt() * torch.eye(4, dtype=DTYPE)])
    expected = torch.linalg.lstsq(stacked, torch.cat([clean, torch.zeros(4, 4, dtype=DTYPE)])).solution.T
    assert relative(torch.cat([linear.weight, linear.bias[:, None]], dim=1), expected) < 1e-8


def test_ridge_refuses_decoders_that_are_not_one_map() -> None:
    net = nn.Sequential(nn.Linear(4, 4), Unknown()).to(DTYPE)
    with pytest.raises(ValueError, match="layer 1 has another kind; choose a different decoder objective"):
        engine(net, rand(5, 4), tp.Ridge())


def test_denoising_learns_to_reconstruct() -> None:
    net, x = NETWORKS["tanh"].build(), rand(64, 4)
    made = engine(net, x, tp.Denoising(noise=0.01, lr=0.02))
    first = float(made.train_decoders(x))
    for _ in range(150):
        last = float(made.train_decoders(x))
    assert last < 0.2 * first


FORMS = {
    "a map": [nn.Linear(4, 3)],
    "slopes after": [nn.Linear(4, 3), nn.ELU()],
    "slopes before": [nn.Tanh(), nn.Linear(4, 3)],
    "slopes before and after": [nn.Flatten(), nn.Tanh(), nn.Linear(4, 3), nn.Sigmoid(), nn.Unflatten(1, (1, 3))],
    "a norm, so no closed form": [nn.Linear(4, 3), nn.LayerNorm(3)],
}


@pytest.mark.parametrize(("w", "damping", "relative_damping"), [(1.0, 0.4, False), (0.0, 1.0, False), (0.7, 0.5, True)])
@pytest.mark.parametrize("name", FORMS)
def test_the_signal_in_closed_form_is_the_mean_over_output_noise(name, w, damping, relative_damping) -> None:
    from targetprop.decoders.objective import Noise

    net = [nn.Linear(4, 4).to(DTYPE), nn.Sequential(*FORMS[name]).to(DTYPE)]
    x, s = rand(6, 4), 0.1
    objective = tp.DifferenceReconstruction(
        w=w, damping=damping, relative=relative_damping, activation="transpose", noise=s
    )
    made = engine(net, x, objective)
    record = run_forward(made.chain, x)
    layer, noise = record.layers[1], Noise(record, record.layers[1], s, torch.Generator().manual_seed(0))
    g, eps = made.bank.inverse(record.layers[1]), noise.like(layer.x)
    change = (layer.f(layer.x + eps) - layer.h).detach()
    if relative_damping:
        damping = damping * float(change.square().mean()) / s**2
    q = g.difference(layer.h, change)
    eye = torch.eye(3, dtype=DTYPE).view(3, *layer.h.shape[1:])
    columns = torch.stack([g.difference(layer.h, e.expand_as(layer.h)) for e in eye])  # J_g, column by column
    expected = ((w * q * q - 2 * eps * q).sum() / s**2 + damping * columns.square().sum()) / 6
    weight = next(m for m in made.bank.modules() if isinstance(m, nn.Linear)).weight
    signal = objective.signal(made.bank, record.layers[1:], record, noise)
    if name.startswith("a norm"):
        assert signal.gradient is None
        return
    assert torch.allclose(signal.loss, expected.detach(), rtol=1e-10)
    assert signal.tensor is weight
    assert relative(signal.gradient, torch.autograd.grad(expected, weight)[0]) < 1e-10


@pytest.mark.parametrize("share", [0.5, 0.01])
def test_share_trains_on_the_first_samples(share: float) -> None:
    net, x = NETWORKS["tanh"].build(), rand(10, 4)
    poisoned = x.clone()
    rows = max(1, round(share * 10))
    poisoned[rows:] = 7.0
    a, b = (engine(net, x, tp.Denoising(share=share)).train_decoders(v) for v in (x, poisoned))
    whole = engine(net, x, tp.Denoising()).train_decoders(x)

    assert torch.equal(a, b) and not torch.equal(a, whole)


BAD = [
    (lambda: tp.DifferenceReconstruction(w=0.0, damping=0.0), "not both 0"),
    (lambda: tp.Exact(w=-1.0), "w and damping must be ≥ 0"),
    (lambda: tp.Denoising(noise=0.0), "decoder noise must be a scale > 0; got 0.0"),
    (lambda: tp.Denoising(share=0.0), "decoder share must be"),
    (lambda: tp.Denoising(activation="none"), "decoder activation must be one of identity, .*, transpose; got 'none'"),
    (lambda: tp.Denoising(optimizer="lbfgs"), "decoder optimizer must be one of adam, sgd"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_settings_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("activation", ["identity", "inverse", "transpose"])
def test_denoising_rebuilds_the_perturbed_input(activation: str) -> None:
    from targetprop.decoders.objective import Noise

    net, x = NETWORKS["tanh"].build(), rand(6, 4)
    made = engine(net, x, tp.Denoising(activation=activation, noise=0.3))
    record = run_forward(made.chain, x)
    noise = Noise(record, record.layers[1], 0.3, torch.Generator().manual_seed(1))
    signal = made.method.decoder.signal(made.bank, record.layers[1:], record, noise)
    # The same written out for the layer Linear → Tanh, with the decoder's own weights.
    v = made.bank.single_linear("2").map if activation == "identity" else next(made.bank.layers["2"].children())[0].map
    h = record.layers[1].x + noise.like(record.layers[1].x)
    y = torch.tanh(net[2](h)).detach()
    inner = {"identity": y, "inverse": torch.atanh(y), "transpose": y * (1 - record.layers[1].h ** 2)}[activation]
    loss = ((inner @ v.weight.T + v.bias - h) ** 2).sum() / len(x)
    wanted = torch.autograd.grad(loss, [v.weight, v.bias])
    found = torch.autograd.grad(signal.tensor, [v.weight, v.bias], signal.gradient)
    assert torch.allclose(signal.loss, loss, rtol=1e-12)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-13) for a, b in zip(found, wanted, strict=True))
    assert torch.allclose(made.method.decoder.layer_loss(made.bank, record.layers[1:], record, noise), loss, rtol=1e-12)


def test_the_linearised_decoder_does_not_underflow() -> None:
    net, x = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)), torch.randn(2, 4)
    record = run_forward(tp.build_chain(net), x)
    g, change = LinearisedDecoder(1.0, 0.1).bind(record.layers[1]), torch.randn(2, 3)
    large, tiny = g.difference(record.layers[1].h, change), g.difference(record.layers[1].h, 1e-25 * change)
    assert torch.allclose(tiny * 1e25, large, rtol=1e-4)


def test_an_engine_without_decoders_prints() -> None:
    net, x = NETWORKS["tanh"].build(), rand(6, 4)
    made = tp.TargetPropagation(net, nn.MSELoss(), example_input=x, method="regularised")
    assert str(made).count("inverse: none needed") == 3
