"""Local updates: closed forms by dense algebra, and what every update promises about ``.grad``."""

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import DTYPE, NETWORKS, TRANSPOSE, gradients, rand, relative, targets
from targetprop.belief import Belief
from targetprop.layers import record_layers
from targetprop.updates import UPDATES, LocalGradients

BETA = 1e-2


def engine(model, update, x: Tensor, loss=None, **parts) -> tp.TargetPropagation:
    method = tp.Method(decoder=TRANSPOSE, update=update, output_target=tp.GradientStep(BETA), **parts)
    return tp.TargetPropagation(model, loss or nn.MSELoss(), example_input=x, method=method)


def local(model: nn.Sequential, x: Tensor, y: Tensor) -> list[tuple[nn.Linear, Tensor, Tensor, Tensor]]:
    """Return per linear map: the map, its input with a 1, ``σ'`` behind it, and ``Δ`` behind that, by autograd."""
    values = [x]
    for module in model:
        values.append(module(values[-1]))
    places = [place for place, module in enumerate(model) if isinstance(module, nn.Linear)]
    ends = [values[end] for end in (*places[1:], len(model))]
    loss = nn.MSELoss(reduction="sum")(values[-1], y) / y.shape[1]
    found = []
    for place, end, gradient in zip(places, ends, torch.autograd.grad(loss, ends, retain_graph=True), strict=True):
        a, z = values[place].detach(), values[place + 1]
        slope = torch.ones_like(z) if z is end else torch.autograd.grad(end.sum(), z, retain_graph=True)[0]
        ones = torch.ones(len(a), 1, dtype=DTYPE)
        found.append((model[place], torch.cat([a, ones], 1), slope, -BETA * gradient))
    return found


def joined(linear: nn.Linear) -> Tensor:
    return torch.cat([linear.weight.grad, linear.bias.grad[:, None]], dim=1)


CUTS = ["post-activation", "pre-activation"]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", ["tanh", "elu"])
def test_gradient_update_is_the_gradient_of_the_local_loss(name: str, cut: str) -> None:
    case = NETWORKS[name]
    model, x, y = case.build(), case.batch(), rand(5, 3, seed=2)
    made = engine(model, tp.Gradient(), x, cut=cut)
    made.backward(x, y)
    record, found = targets(made, x, lambda r: -BETA * 2 * (r.output - y) / 3)
    expected = []
    for layer, change in zip(record.layers, found.deltas, strict=True):
        loss = 0.5 * (layer.y - (layer.h + change)).square().sum() / (BETA * 5)
        expected += [g.flatten() for g in torch.autograd.grad(loss, list(layer.layer.parameters()))]
    assert relative(gradients(model), torch.cat(expected)) < 1e-12


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("pullback", ["inverse", "transpose"])
def test_delta_rule_is_the_mean_of_minimum_norm_changes(pullback: str, damping: float) -> None:
    model, x, y = NETWORKS["tanh"].build(), NETWORKS["tanh"].batch(), rand(5, 3, seed=2)
    engine(model, tp.DeltaRule(pullback=pullback, pullback_damping=damping), x).backward(x, y)
    for linear, a, slope, delta in local(model, x, y):
        last = linear.out_features == 3  # nothing follows the last map
        back = slope * delta if pullback == "transpose" else slope * delta / (slope**2 + damping)
        dz = delta if last else back
        change = sum(torch.outer(d, v) / v.dot(v) for d, v in zip(dz, a, strict=True)) / 5
        assert relative(joined(linear), -change / BETA) < 1e-11


def test_delta_rule_on_one_sample_reaches_its_target_in_one_step() -> None:
    model, x, y = NETWORKS["elu"].build(), NETWORKS["elu"].batch(1), rand(1, 3, seed=2)
    made = engine(model, tp.DeltaRule(pullback_damping=0.0), x, cut="pre-activation")
    made.backward(x, y)
    _, found = targets(made, x, lambda r: -BETA * 2 * (r.output - y) / 3)
    record = record_layers(model, x, "pre-activation")
    torch.optim.SGD(model.parameters(), lr=BETA).step()
    for layer, change in zip(record.layers, found.deltas, strict=True):
        assert (layer.f(layer.x) - layer.h - change).abs().max() < 1e-14


@pytest.mark.parametrize(("unit_scale", "shared"), [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize(("damping", "shrinkage"), [(1.0, 0.0), (1e-3, 0.0), (0.1, 0.7)])
def test_least_squares_is_the_damped_regression(
    unit_scale: bool, shared: bool, damping: float, shrinkage: float
) -> None:
    model, x, y = NETWORKS["tanh"].build(), rand(20, 4), rand(20, 3, seed=2)
    update = tp.LeastSquares(
        pullback="inverse", pullback_damping=0.0, damping=damping, shrinkage=shrinkage, decay=0.0, every=1,
        unit_scale=unit_scale, shared=shared,
    )  # fmt: skip
    engine(model, update, x).backward(x, y)
    for linear, a, slope, delta in local(model, x, y):
        dz = delta / slope
        if unit_scale:
            maps = sum(isinstance(module, nn.Linear) for module in model) if shared else 1
            dz = BETA * dz / dz.square().mean().sqrt() / maps
        mu = (
            (damping + shrinkage * a.shape[1] / 20) * a.square().sum() / a.numel()
        )  # relative to the mean of the diagonal of Σaaᵀ/n
        eye = torch.eye(a.shape[1], dtype=DTYPE)
        change = (dz.T @ a) @ torch.linalg.inv(a.T @ a + 20 * mu * eye)
        assert relative(joined(linear), -change / BETA) < 1e-9


@pytest.mark.parametrize("bounded", [False, True])
def test_least_squares_averages_its_covariance_and_reuses_its_factor(bounded: bool) -> None:
    model, decay, every = nn.Sequential(nn.Linear(4, 3)).double(), 0.7, 2
    update = tp.LeastSquares(damping=0.1, shrinkage=0.5, decay=decay, every=every, unit_scale=False, bounded=bounded)
    batches = [rand(6, 4, seed=i) for i in range(5)]
    made, y = engine(model, update, batches[0]), rand(6, 3, seed=9)
    average, weight, used = torch.zeros(5, 5, dtype=DTYPE), 0.0, None
    for step, x in enumerate(batches):
        model.zero_grad()
        made.backward(x, y)
        a = torch.cat([x, torch.ones(6, 1, dtype=DTYPE)], dim=1)
        average, weight = decay * average + (1 - decay) * a.T @ a / 6, decay * weight + (1 - decay)
        if step % every == 0:
            mean = average / weight
            weights = torch.tensor([decay**k for k in range(step + 1)], dtype=DTYPE)
            rows = 6 * float(weights.sum() ** 2 / weights.square().sum())  # equally many in a plain mean
            used = mean + (0.1 + 0.5 * 5 / rows) * mean.diagonal().mean() * torch.eye(5, dtype=DTYPE)
        delta = -BETA * 2 * (model(x).detach() - y) / 3
        change = (delta.T @ a / 6) @ torch.linalg.inv(used)
        if (
            bounded
        ):  # the regression on the batch itself asks for less than its targets, a stale covariance may for more
            change = change * min(1.0, float(delta.norm() / (a @ change.T).norm()))
        assert relative(joined(model[0]), -change / BETA) < 1e-9


def test_least_squares_is_bounded_where_activations_have_grown() -> None:
    model, y = nn.Sequential(nn.Linear(4, 3)).double(), rand(6, 3, seed=9)
    for bounded in (False, True):
        update = tp.LeastSquares(damping=1e-3, shrinkage=0.0, decay=0.95, every=1, bounded=bounded)
        made, x = engine(model, update, rand(6, 4)), rand(6, 4)
        for grown in (1.0, 30.0):
            model.zero_grad()
            x = grown * rand(6, 4)
            made.backward(x, y)
        a = torch.cat([x, torch.ones(6, 1, dtype=DTYPE)], dim=1)
        size = float((a @ joined(model[0]).T).square().mean().sqrt())  # asked for is 1
        assert size == pytest.approx(1.0) if bounded else size > 1.5


@pytest.mark.parametrize("update", [tp.DeltaRule(), tp.LeastSquares(pullback="transpose")])
def test_what_is_no_linear_map_gets_its_gradient(update) -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.PReLU(5), nn.Linear(5, 3)).double()
    x, y = rand(6, 4), rand(6, 3, seed=2)
    plain = nn.Sequential(nn.Linear(4, 5), nn.PReLU(5), nn.Linear(5, 3)).double()
    plain.load_state_dict(net.state_dict())
    engine(net, update, x).backward(x, y)
    engine(plain, tp.Gradient(), x).backward(x, y)
    assert relative(net[1].weight.grad, plain[1].weight.grad) < 1e-12
    assert relative(net[0].weight.grad, plain[0].weight.grad) > 1e-2


@pytest.mark.parametrize("update", [tp.DeltaRule(), tp.LeastSquares(pullback="inverse")])
def test_activations_in_place_are_those_that_are_not(update) -> None:
    found = []
    for in_place in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 5), nn.ELU(inplace=in_place), nn.Linear(5, 3)).double()
        engine(net, update, x := rand(6, 4)).backward(x, rand(6, 3, seed=2))
        found.append(gradients(net))
    assert relative(found[1], found[0]) < 1e-12


@pytest.mark.parametrize("name", UPDATES)
def test_gradients_are_accumulated(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = NETWORKS["tanh"].build(), NETWORKS["tanh"].batch(), rand(5, 3, seed=2)
    # What changes from step to step is held still: labels are drawn anew, and the momentum of two steps differs.
    still = {"least-squares": {"every": 1, "decay": 0.0}, "kronecker": {"momentum": 0.0, "decay": 0.0}}
    update = UPDATES[name](**still.get(name, {}))
    if isinstance(update, tp.Kronecker):
        monkeypatch.setattr(Belief, "draw", lambda *_: rand(5, 3, seed=3))
    made = engine(model, update, x)
    made.backward(x, y)
    once = gradients(model)
    made.backward(x, y)
    assert relative(gradients(model), 2 * once) < 1e-12


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("frozen", ["0.weight", "2.bias", "4.weight"])
def test_frozen_parameters_are_left_alone(name: str, frozen: str) -> None:
    model, x, y = NETWORKS["tanh"].build(), NETWORKS["tanh"].batch(), rand(5, 3, seed=2)
    model.get_parameter(frozen).requires_grad_(False)
    engine(model, UPDATES[name](), x).backward(x, y)
    got = {n for n, p in model.named_parameters() if p.grad is not None}
    assert got == {n for n, _ in model.named_parameters()} - {frozen}


@pytest.mark.parametrize("name", UPDATES)
def test_a_sum_over_the_batch_is_n_times_the_mean(name: str) -> None:
    found = []
    for loss in (nn.MSELoss(), nn.MSELoss(reduction="sum")):
        model, x, y = NETWORKS["tanh"].build(), NETWORKS["tanh"].batch(), rand(5, 3, seed=2)
        update = tp.LeastSquares(unit_scale=False) if name == "least-squares" else UPDATES[name]()
        engine(model, update, x, loss).backward(x, y)
        found.append(gradients(model))
    factor = 1 if name == "kronecker" else 15  # MSELoss divides by n times 3 units; Polyak's step has no units
    assert relative(found[1], factor * found[0]) < 1e-10


def test_unit_scale_makes_the_step_independent_of_the_size_of_the_targets() -> None:
    found = []
    for factor in (1.0, 1e-4):
        model, x = NETWORKS["tanh"].build(), NETWORKS["tanh"].batch()
        engine(model, tp.LeastSquares(), x, lambda h, y, c=factor: c * nn.functional.mse_loss(h, y)).backward(
            x, rand(5, 3, seed=2)
        )
        found.append(gradients(model))
    assert relative(found[1], found[0]) < 1e-9


def test_inverse_pullback_refuses_what_is_not_elementwise() -> None:
    case = NETWORKS["layer norm"]
    with pytest.raises(ValueError, match="layer 0: pullback 'inverse' needs elementwise .* layer_norm .* 'transpose'"):
        engine(case.build(), tp.DeltaRule(), case.batch())
    engine(case.build(), tp.DeltaRule(pullback="transpose"), case.batch())


BAD = [
    (lambda: tp.DeltaRule(pullback="none"), "pullback must be one of inverse, transpose; got 'none'"),
    (lambda: tp.DeltaRule(pullback_damping=-1.0), "pullback_damping must be ≥ 0"),
    (lambda: tp.LeastSquares(decay=1.0), r"decay in \[0, 1\)"),
    (lambda: tp.LeastSquares(every=0), "every ≥ 1"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_settings_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_parameters_never_share_the_memory_of_a_gradient():
    p, q = (nn.Parameter(torch.zeros(2, 3)) for _ in range(2))
    found, shared = LocalGradients(), torch.ones(2, 3)
    found.note("0", [p, q], [shared, shared])
    found.add_to_grad()
    p.grad.mul_(5)
    assert q.grad.tolist() == [[1.0] * 3] * 2
    turned = nn.Parameter(torch.zeros(3, 2))
    found = LocalGradients({turned: torch.arange(6.0).view(2, 3).T})
    found.add_to_grad()
    assert turned.grad.is_contiguous() and turned.grad.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
