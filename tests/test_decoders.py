"""Objectives: where their minimum is, that learning ends there, closed forms, and decoders that are not trained."""

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import DTYPE, NETWORKS, rand, relative
from one_layer import EvenNoise, bind
from targetprop import diagnostics
from targetprop.decoders import LinearisedDecoder

# PyTorch says that this padding may copy its input.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def engine(net: nn.Module, x: Tensor, objective: tp.Denoising | None = None, **more) -> tp.TargetPropagation:
    propagation = "composite" if isinstance(objective, tp.DirectFeedback) else "layerwise"
    method = tp.Method(decoder=objective or tp.Denoising(), propagation=propagation)
    return tp.TargetPropagation(net, nn.MSELoss(), example_input=x, method=method, seed=0, **more)


# Where the minimum is, and that learning ends there


@pytest.mark.parametrize("penalty", ["expected", "matched"])
@pytest.mark.parametrize("units", ["absolute", "relative"])
@pytest.mark.parametrize(("w", "damping"), [(1.0, 0.0), (1.0, 0.4), (0.0, 1.0), (0.3, 1.5)])
@pytest.mark.parametrize(("inputs", "outputs"), [(4, 3), (3, 3)])
def test_difference_reconstruction_has_its_minimum_at_the_damped_inverse(
    inputs: int, outputs: int, w: float, damping: float, units: str, penalty: str
) -> None:
    objective = tp.DifferenceReconstruction(w=w, damping=damping, relative=units == "relative", penalty=penalty)
    linear = nn.Linear(inputs, outputs)
    found = bind(linear, rand(24, inputs), objective)
    W, (V, _), given = linear.weight.detach(), found.engine.bank.parameters(), (*found.given, EvenNoise(0.1))
    damping *= float(W.square().sum() / outputs) if units == "relative" else 1.0
    V.data = diagnostics.damped_inverse(W, w, damping)
    signal, loss = objective.signal(*given), objective.layer_loss(*given)
    assert signal.tensor is V and signal.gradient.norm() < 1e-10
    assert torch.autograd.grad(loss, V)[0].norm() < 1e-10
    assert torch.allclose(torch.stack([signal.loss, loss]), -(V * W.T).sum(), rtol=1e-10)


def square(depth: int) -> nn.Sequential:
    """Linear maps in a row, each well-conditioned."""
    net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(depth))).to(DTYPE)
    for seed, linear in enumerate(net):
        linear.weight.data = torch.eye(3, dtype=DTYPE) + 0.3 * rand(3, 3, seed=seed)
    return net


GLOBAL = [tp.GlobalReconstruction(damping=0.2, lr=0.05), tp.DirectFeedback(damping=0.2, lr=0.05)]


@pytest.mark.parametrize("objective", GLOBAL)
def test_global_objectives_have_their_minimum_at_the_damped_inverse_of_all_that_follows(objective) -> None:
    net, x = square(3), rand(192, 3)
    made = engine(net, x, objective)
    goals = [diagnostics.damped_inverse(J.detach(), 1.0, 0.2) for J in (net[2].weight @ net[1].weight, net[2].weight)]
    schedule = torch.optim.lr_scheduler.ExponentialLR(made.decoder_optimizer, 0.98)
    for _ in range(200):
        made.train_decoders(x)
        schedule.step()
    record, axes = made.record(x), torch.eye(3, dtype=DTYPE).repeat(64, 1)
    composites = [made.bank.composite(record.layers[index:]) for index in (1, 2)]
    for g, goal in zip(composites, goals, strict=True):
        assert relative(g.difference(record.output, axes)[:3].T, goal) < 0.06
    maps = [p for p in made.bank.parameters() if p.dim() == 2]
    maps[1].data = goals[1]
    maps[0].data = goals[0] if isinstance(objective, tp.DirectFeedback) else goals[0] @ torch.linalg.inv(goals[1])
    for index, (g, goal) in enumerate(zip(composites, goals, strict=True), start=1):
        assert relative(g.difference(record.output, axes)[:3].T, goal) < 1e-12
        assert relative(g(record.output + axes) - g(record.output), g.difference(record.output, axes).detach()) < 1e-12
        if not isinstance(objective, tp.DirectFeedback):  # in its differential form
            assert torch.equal(g(record.output), record.layers[index].x)
        loss = objective.layer_loss(made.bank, record.layers[index:], record, EvenNoise(0.1))
        assert torch.autograd.grad(loss, maps[index - 1])[0].norm() < 1e-10


TRANSPOSE = {"w": 0.0, "damping": 1.0}
LEARNED = [  # the objective, its minimum, whether the map is in a residual block, and how near
    (tp.Denoising(), 1.0, 0.0, False, 0.01),
    (tp.Denoising(), 1.0, 0.0, True, 0.01),
    (tp.DifferenceReconstruction(w=1.0, damping=0.4), 1.0, 0.4, False, 0.05),
    (tp.DifferenceReconstruction(w=1.0, damping=0.4), 1.0, 0.4, True, 0.06),
    (tp.DifferenceReconstruction(**TRANSPOSE, updates=2, share=0.5), 0.0, 1.0, False, 0.06),
    (tp.DifferenceReconstruction(**TRANSPOSE, penalty="matched", start="zero"), 0.0, 1.0, False, 1e-3),
]


@pytest.mark.parametrize(("objective", "w", "damping", "residual", "error"), LEARNED)
def test_learning_ends_at_the_minimum(objective, w: float, damping: float, residual: bool, error: float) -> None:
    (linear,), axes = square(1), torch.eye(3, dtype=DTYPE).repeat(64, 1)
    goal = diagnostics.damped_inverse(linear.weight.detach(), w, damping)
    linear.weight.data -= residual * axes[:3]
    found = bind(tp.Residual(linear) if residual else linear, rand(192, 3), objective)
    V, c = found.engine.bank.parameters()
    assert (V.any() or c.any()) == (not residual and getattr(objective, "start", "random") == "random")
    found.learn(200, 0.1)
    assert relative(found.g.difference(found.layer.h, axes)[:3].T, goal) < error


@pytest.mark.parametrize("activation", ["identity", "inverse", "transpose"])
def test_denoising_rebuilds_the_perturbed_input(activation: str) -> None:
    linear, objective = nn.Linear(4, 3), tp.Denoising(activation=activation, noise=0.3)
    found = bind(nn.Sequential(linear, nn.Tanh()), rand(6, 4), objective)
    V, c = found.engine.bank.parameters()
    h = found.layer.x + found.noise().like(found.layer.x)
    y = torch.tanh(linear(h)).detach()
    inner = {"identity": y, "inverse": torch.atanh(y), "transpose": y * (1 - found.layer.h**2)}[activation]
    loss = ((inner @ V.T + c - h) ** 2).sum() / 6
    signal, plain = (call(*found.given, found.noise()) for call in (objective.signal, objective.layer_loss))
    learned = torch.autograd.grad(signal.tensor, [V, c], signal.gradient)
    assert all(relative(a, b) < 1e-10 for a, b in zip(learned, torch.autograd.grad(loss, [V, c]), strict=True))
    assert torch.allclose(torch.stack([signal.loss, plain]), loss, rtol=1e-12)


@pytest.mark.parametrize("share", [0.5, 0.01])
def test_a_share_is_the_first_samples(share: float) -> None:
    net, x = NETWORKS["tanh"].build(), rand(10, 4)
    other = x.clone()
    other[max(1, round(share * 10)) :] = 7.0
    a, b = (engine(net, x, tp.Denoising(share=share)).train_decoders(v) for v in (x, other))
    assert torch.equal(a, b) and not torch.equal(a, engine(net, x, tp.Denoising()).train_decoders(x))


# The closed form of difference reconstruction

IMAGE = (4, 5, 4)


def norm() -> nn.Module:
    """Gains of either sign, and statistics that stay."""
    found = nn.BatchNorm2d(4).eval()
    found.weight.data = torch.tensor([0.5, 1.0, -2.0, 1.5])
    return found


FORMS = {
    "linear": lambda: [nn.Flatten(), nn.Linear(80, 3)],
    "slopes on both sides": lambda: [nn.Flatten(), nn.Tanh(), nn.Linear(80, 3), nn.Sigmoid(), nn.Unflatten(1, (1, 3))],
    "convolution": lambda: [nn.Conv2d(4, 5, 3, stride=2, padding=1)],
    "groups, same": lambda: [nn.Conv2d(4, 6, (2, 3), padding="same", groups=2, dilation=(1, 2))],
    "block": lambda: [nn.Conv2d(4, 4, 3, padding=1), norm(), nn.Tanh(), nn.MaxPool2d(2)],
    "pre-activation": lambda: [nn.ELU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 2, groups=2, bias=False)],
    "pools on both sides": lambda: [nn.MaxPool2d((1, 2)), nn.Conv2d(4, 6, 2, groups=2), nn.Tanh(), nn.Flatten()],
    "shuffle": lambda: [nn.PixelShuffle(2), nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True)],
    "transposed": lambda: [nn.ConvTranspose2d(4, 2, 3, 2, 1, output_padding=1, groups=2), nn.Tanh()],
    "one axis": lambda: [nn.Flatten(2), nn.Conv1d(4, 3, 4, 3), nn.GELU()],
}
OPEN = {
    "overlapping pool": lambda: [nn.Conv2d(4, 5, 3), nn.MaxPool2d(2, 1)],
    "averages": lambda: [nn.Conv2d(4, 5, 3, padding=1), nn.AvgPool2d(2)],
    "reflect": lambda: [nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect")],
    "two convolutions": lambda: [nn.Conv2d(4, 5, 3), nn.Tanh(), nn.Conv2d(5, 4, 2)],
    "layer norm": lambda: [nn.Flatten(), nn.Linear(80, 6), nn.LayerNorm(6)],
    "residual block": lambda: [nn.Conv2d(4, 5, 3), tp.Residual(nn.Conv2d(5, 5, 1), nn.Tanh())],
}


class Draws:
    """A draw per sample at the input of a layer, and with it every axis in turn at its output."""

    def __init__(self, x: Tensor, h: Tensor) -> None:
        width = h[0].numel()
        axes = 0.1 * width**0.5 * torch.eye(width, dtype=DTYPE)
        self.eps = 0.1 * rand(len(h) // width, *x.shape[1:], seed=3).repeat_interleave(width, 0)
        self.eta = axes.repeat(len(h) // width, 1).view_as(h)

    def like(self, values: Tensor) -> Tensor:
        return self.eta if values.shape == self.eta.shape else self.eps


@pytest.mark.parametrize(("w", "damping", "units"), [(0.0, 1.0, ""), (1.0, 0.0, ""), (0.7, 0.3, "relative")])
@pytest.mark.parametrize("name", FORMS)
def test_the_closed_form_is_the_mean_over_output_noise(name: str, w: float, damping: float, units: str) -> None:
    torch.manual_seed(0)
    objective = tp.DifferenceReconstruction(w=w, damping=damping, relative=bool(units), activation="transpose")
    module = nn.Sequential(*FORMS[name]()).to(DTYPE)
    width = module(rand(1, *IMAGE))[0].numel()
    found = bind(module, rand(2, *IMAGE).repeat_interleave(width, 0), objective)
    given = *found.given, Draws(found.layer.x, found.layer.h)
    signal, loss = objective.signal(*given), objective.layer_loss(*given)
    assert signal.gradient is not None, "not the closed form"
    assert torch.allclose(signal.loss, loss, rtol=1e-9)
    assert relative(signal.gradient, torch.autograd.grad(loss, signal.tensor)[0]) < 1e-9


@pytest.mark.parametrize(("w", "damping"), [(0.0, 1.0), (0.7, 0.3)])
@pytest.mark.parametrize("name", FORMS)
def test_the_matched_penalty_estimates_by_the_input_noise(name: str, w: float, damping: float) -> None:
    objective = tp.DifferenceReconstruction(w=w, damping=damping, activation="transpose", penalty="matched")
    found = bind(nn.Sequential(*FORMS[name](), nn.Dropout(0.3)), rand(3, *IMAGE), objective)
    layer, g, signal = found.layer, found.g, objective.signal(*found.given, found.noise())
    eps, unit = found.noise().like(layer.x), torch.zeros_like(layer.h).requires_grad_()
    q = g.difference(layer.h, layer.f(layer.x + eps).detach() - layer.h)
    (back,) = torch.autograd.grad((g.difference(layer.h, unit) * eps).sum(), unit, create_graph=True)
    loss = ((w * q.square() - 2 * eps * q).sum() + damping * back.square().sum()) / 0.03
    assert torch.allclose(signal.loss, loss, rtol=1e-10)
    assert relative(signal.gradient, torch.autograd.grad(loss, signal.tensor)[0]) < 1e-10


@pytest.mark.parametrize("name", OPEN)
def test_other_decoders_learn_from_noise_at_both_ends(name: str) -> None:
    objective = tp.DifferenceReconstruction(w=0.5, damping=1.0, activation="transpose")
    found = bind(nn.Sequential(*OPEN[name]()), rand(3, *IMAGE), objective)
    layer, g, noise = found.layer, found.g, found.noise()
    signal, eps = objective.signal(*found.given, noise), noise.like(layer.x)
    q = g(layer.f(layer.x + eps).detach()) - g(layer.h)
    p = g(layer.h + noise.like(layer.h)) - g(layer.h)
    loss = (0.5 * q.square() - 2 * eps * q).sum() + p.square().sum()
    assert signal.gradient is None and torch.allclose(signal.tensor, loss / 0.03, rtol=1e-9)


# Who learns


def reached(bank: nn.Module, loss: Tensor) -> set[str]:
    """Find which decoders a loss has a gradient for, by the key of their layer."""
    names, parameters = zip(*bank.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name.split(".")[1] for name, g in zip(names, found, strict=True) if g is not None and g.any()}


@pytest.mark.parametrize("objective", [tp.Denoising(), tp.DifferenceReconstruction(damping=0.1), *GLOBAL])
def test_each_loss_trains_its_own_decoder_only(objective) -> None:
    made = engine(NETWORKS["tanh"].build(), rand(36, 4), objective)
    record, noise = made.record(rand(60, 4)), EvenNoise(0.1)
    for index, name in ((1, "2"), (2, "4")):
        assert reached(made.bank, objective.layer_loss(made.bank, record.layers[index:], record, noise)) == {name}


def test_fixed_decoders_stay_as_they_were_drawn() -> None:
    net, x = NETWORKS["tanh"].build(), rand(5, 4)
    made, learned = engine(net, x, tp.Fixed()), engine(net, x)
    made.backward(x, rand(5, 3))
    assert made.kinds() == {"2": "fixed", "4": "fixed"} and made.train_decoders(x) is None
    assert all(torch.equal(a, b) for a, b in zip(made.bank.parameters(), learned.bank.parameters(), strict=True))


# Ridge regression

RIDGES = {
    "after": lambda: [nn.Linear(4, 3), nn.Tanh()],
    "reshaped": lambda: [nn.Unflatten(1, (2, 2)), nn.Flatten(), nn.Linear(4, 3), nn.Unflatten(1, (3, 1))],
    "repeated": lambda: [nn.Unflatten(1, (1, 4)), nn.Upsample(scale_factor=2), nn.Flatten(), nn.Linear(8, 3)],
    "averaged": lambda: [nn.Unflatten(1, (1, 4)), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(2, 3)],
    "selected": lambda: [nn.Unflatten(1, (1, 4)), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(2, 3)],
    "dropped": lambda: [nn.Dropout(0.4), nn.Linear(4, 3), nn.Dropout(0.2)],
    "tokens": lambda: [nn.Unflatten(1, (2, 2)), nn.Linear(2, 3), nn.Tanh()],
}


@pytest.mark.parametrize("name", RIDGES)
def test_ridge_is_the_damped_least_squares_solution(name: str) -> None:
    x, drawn, module = rand(50, 4), torch.Generator(), nn.Sequential(*RIDGES[name]())
    found = bind(module, x, tp.Ridge(damping=0.01, noise=0.3, decay=0.0, every=1))
    drawn.set_state(found.engine.state_dict()["generators"]["layer"])
    torch.manual_seed(1)
    found.engine.train_decoders(x)
    clean = x + found.noise(drawn).like(x)
    place = next(place for place, m in enumerate(module) if isinstance(m, nn.Linear))
    torch.manual_seed(1)  # places that were selected without the noise
    wanted = torch.autograd.functional.jvp(module[:place], x, clean)[1] if place else clean
    V, c = found.engine.bank.parameters()
    y = found.layer.f(clean).detach().reshape(-1, 3) * (0.8 if name == "dropped" else 1.0)
    a = torch.cat([y, torch.ones(len(y), 1, dtype=DTYPE)], dim=1)
    ridge = 0.01 * a.square().sum() / 4
    stacked = torch.cat([a, ridge.sqrt() * torch.eye(4, dtype=DTYPE)])
    rows = wanted.reshape(len(y), -1)
    expected = torch.linalg.lstsq(stacked, torch.cat([rows, torch.zeros(4, rows.shape[1], dtype=DTYPE)])).solution.T
    assert relative(torch.cat([V, c[:, None]], dim=1), expected) < 1e-8


# Exact decoders


@pytest.mark.parametrize(("w", "damping"), [(1.0, 0.0), (1.0, 0.2), (0.3, 1.5), (0.0, 1.0), (0.0, 0.5)])
@pytest.mark.parametrize(("inputs", "outputs", "rank"), [(3, 6, 3), (6, 3, 3), (4, 4, 4), (4, 4, 2)])
def test_exact_decoders_are_the_dense_damped_inverse(
    inputs: int, outputs: int, rank: int, w: float, damping: float
) -> None:
    linear, x, change = nn.Linear(inputs, outputs), rand(5, inputs), rand(5, outputs, seed=4)
    linear.weight.data = rand(outputs, rank) @ rand(rank, inputs, seed=1)
    found = bind(nn.Sequential(linear, nn.Tanh()), x, tp.Exact(w=w, damping=damping))
    J = (1 - found.layer.h.square()).unsqueeze(2) * linear.weight.detach()
    K = w * J @ J.mT + damping * torch.eye(outputs, dtype=DTYPE)
    dense = J.mT @ torch.linalg.inv(K) if damping else torch.linalg.pinv(J, rtol=1e-10)
    expected = (dense @ change.unsqueeze(2)).squeeze(2)
    assert relative(found.g.difference(found.layer.h, change), expected) < 1e-7
    assert relative(found.g(found.layer.h + change), x + expected) < 1e-7
    assert found.engine.kinds() == {"layer": f"linearised, w={w:g}, damping={damping:g}"}


@pytest.mark.parametrize("tolerance", [1e-1, 1e-6])
def test_each_sample_is_solved_to_the_tolerance_alone_however_small(tolerance: float) -> None:
    layer = bind(nn.Sequential(nn.Linear(4, 5), nn.Tanh()), rand(6, 4), tp.Exact(w=1.0, damping=0.1)).layer
    size = torch.logspace(-200, 3, 6, dtype=DTYPE).unsqueeze(1)
    decoder = LinearisedDecoder(1.0, 0.1, tolerance=tolerance)
    change, J = size * rand(6, 5, seed=1), diagnostics.layer_jacobian(layer)
    found = decoder.bind(layer).difference(layer.h, change)
    rhs, solved = (t / size for t in ((J.mT @ change.unsqueeze(2)).squeeze(2), found))
    left = rhs - (J.mT @ (J @ solved.unsqueeze(2))).squeeze(2) - 0.1 * solved
    assert (left.norm(dim=1) <= tolerance * rhs.norm(dim=1) * (1 + 1e-6)).all()
    few = decoder.bind(layer.head(2)).difference(layer.h[:2], change[:2])
    assert torch.allclose(few / size[:2], solved[:2], rtol=1e-9)


# Decoders of one's own, and what is refused


@pytest.mark.parametrize("objective", [tp.Denoising(), tp.DifferenceReconstruction(w=0.0, damping=1.0)])
def test_a_decoder_of_ones_own_serves_the_layer_of_its_name_and_is_trained_with_the_others(objective) -> None:
    mine, x, change = nn.Sequential(nn.Linear(3, 5), nn.Tanh()).to(DTYPE), rand(5, 4), rand(5, 3, seed=3)
    made = engine(NETWORKS["tanh"].build(), x, objective, decoders={"4": mine})
    g, y, before = made.bank.inverse(made.record(x).layers[2]), rand(5, 3, seed=2), mine[0].weight.detach().clone()
    assert torch.equal(g(y), mine(y))
    assert torch.allclose(g.difference(y, change), mine(y + change) - mine(y), rtol=1e-12)
    made.train_decoders(x)
    assert not torch.equal(mine[0].weight, before)


def own(**decoders: nn.Module) -> tp.TargetPropagation:
    return engine(NETWORKS["tanh"].build(), rand(2, 4), decoders={name[1:]: m for name, m in decoders.items()})


def ridge(*modules: nn.Module) -> object:
    return bind(nn.Sequential(*modules), rand(5, 4, 4), tp.Ridge())


BAD = [
    (lambda: own(_9=nn.Linear(6, 4)), "decoders names layer '9', but the layers are 0, 2, 4"),
    (lambda: own(_0=nn.Linear(6, 4)), "'0', the first one, which is never inverted"),
    (lambda: own(_4=nn.Linear(3, 4).to(DTYPE)), r"of layer 4 returns \(2, 4\), and the input .* shape \(2, 5\)"),
    (lambda: ridge(nn.Conv1d(4, 4, 1)), "layer layer has another kind; choose a different decoder objective"),
    (lambda: ridge(nn.Linear(4, 4), nn.Linear(4, 3)), "layer layer has another kind"),
    (lambda: tp.DifferenceReconstruction(w=0.0, damping=0.0), "not both 0"),
    (lambda: tp.Exact(w=-1.0), "w and damping must be ≥ 0"),
    (lambda: tp.DifferenceReconstruction(noise=0.0), "decoder noise must be a scale > 0; got 0.0"),
    (lambda: tp.Denoising(activation="none"), "decoder activation must be one of identity, .*, forward; got 'none'"),
    (lambda: tp.Ridge(decay=1.0), r"decoder decay must be a share in \[0, 1\)"),
    (lambda: tp.Method(decoder=tp.DirectFeedback()), "choose the propagation 'composite'"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_what_cannot_be_is_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
