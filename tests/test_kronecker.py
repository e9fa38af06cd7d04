"""The update with a factor for each side, against the same formulas written out for a whole network."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import NETWORKS, rand
from targetprop.batch import Batch
from targetprop.belief import Belief
from targetprop.updates import kronecker, length
from targetprop.updates.leading import Leading
from targetprop.updates.side import Side
from targetprop.updates.sketch import Sketch

ROWS, STEPS, WIDTHS = 24, 18, (5, 7, 4, 3)
MEASURED = 2


class Oracle:
    """Back-propagation, moments from the beginning on as plain sums, and dense inverses."""

    def __init__(self, net: nn.Sequential, update: tp.Kronecker, settled: int) -> None:
        self.settled = settled
        self.maps, self.update = [m for m in net if isinstance(m, nn.Linear)], update
        self.inputs: list[list[Tensor]] = [[] for _ in self.maps]
        self.outputs: list[list[Tensor]] = [[] for _ in self.maps]
        self.asked: list[list[Tensor]] = [[] for _ in self.maps]
        self.decreases: list[list[Tensor]] = [[] for _ in self.maps]
        self.excess: list[list[Tensor]] = [[] for _ in self.maps]
        self.factors: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0)) for _ in self.maps]
        self.step = 0

    def changes(self, net: nn.Sequential, x: Tensor, y: Tensor, drawn: Tensor) -> list[Tensor]:
        values, a, h = [], [], x
        for module in net:
            if isinstance(module, nn.Linear):
                a.append(torch.cat([h.detach(), torch.ones_like(h[:, :1])], 1))
            h = module(h)
            if isinstance(module, nn.Linear):
                values.append(h)
        loss = nn.functional.cross_entropy(h, y)
        label = nn.functional.one_hot(y, h.shape[1]).to(h)
        down = torch.autograd.grad(h, values, label - h.softmax(1).detach(), retain_graph=True)
        felt = torch.autograd.grad(h, values, drawn)
        found = []
        for place in range(len(self.maps)):
            found.append(self._change(place, a[place], down[place], felt[place], loss.detach()))
        self.step += 1
        return found

    def _change(self, place: int, a: Tensor, down: Tensor, felt: Tensor, excess: Tensor) -> Tensor:
        u, top = self.update, place == len(self.maps) - 1
        if self.step % min(u.observe, 1 + self.step // 20) == 0:
            self.inputs[place].append(a.T @ a / len(a))
            moment = felt.T @ felt / len(a)
            self.outputs[place].append(moment.diagonal().diag() if top else moment)
        inputs, outputs = (_average(found[place], u.decay) for found in (self.inputs, self.outputs))
        if self.step % min(u.every, 1 + self.step // 10) == 0:
            kept = u.decay ** len(self.inputs[place])
            worth = len(a) * (1 - kept) * (1 + u.decay) / ((1 + kept) * (1 - u.decay))
            self.factors[place] = (
                _inverse(inputs, u.damping + u.shrinkage * len(inputs) / worth),
                _inverse(outputs, u.output_damping),
            )
        p, q = self.factors[place]
        product, asked = down.T @ a / len(a), self.asked[place]
        newest = q @ product @ p
        if self.step < self.settled:
            asked.append(product)
            change = q @ _nesterov(asked, u.momentum) @ p
        else:
            if self.step == self.settled:
                asked[:] = [q @ value @ p for value in asked]
            asked.append(newest)
            change = _nesterov(asked, u.momentum)
        moved = a[:MEASURED] @ newest.T
        by_row = self.step >= self.settled and len(a) == 3  # cheaper then, and there is no product to measure on
        lowered = (down[:MEASURED] * moved).sum() / len(moved) if by_row else (product * newest).sum()
        self.decreases[place].append(lowered)
        self.excess[place].append(excess)
        polyak = u.decrease * _average(self.excess[place], u.momentum) / _average(self.decreases[place], u.momentum)
        return change * torch.minimum(polyak, u.limit / moved.square().mean().sqrt()) / len(self.maps)


def _average(values: list[Tensor], decay: float) -> Tensor:
    weights = [decay**age for age in reversed(range(len(values)))]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)  # pyright: ignore


def _nesterov(values: list[Tensor], decay: float) -> Tensor:
    """Weigh all with the average, and the newest once more."""
    return decay * _average(values, decay) + (1 - decay) * values[-1]


def _inverse(moment: Tensor, damping: float) -> Tensor:
    mean = moment.diagonal().mean()
    return torch.linalg.inv(moment / mean + damping * torch.eye(len(moment), dtype=moment.dtype))


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    for inputs, outputs in zip(WIDTHS[:-1], WIDTHS[1:], strict=True):
        modules += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*modules[:-1]).double()


@pytest.mark.parametrize("rows", [3, ROWS], ids=["few rows", "many rows"])
@pytest.mark.parametrize("cut", ["post-activation", "pre-activation"])
@pytest.mark.parametrize("limit", [0.05, 100.0])
@pytest.mark.parametrize("settled", [12, 100])
def test_every_step_is_that_of_the_formulas(
    rows: int, cut: str, limit: float, settled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kronecker, "_SETTLED", settled)
    monkeypatch.setattr(length, "_MEASURED", MEASURED)
    net, update = _network(), tp.Kronecker(observe=3, every=4, limit=limit)
    method = tp.method("kronecker", cut=cut, decoder=tp.Exact(w=0.0, damping=1.0), update=update)
    torch.manual_seed(1)
    x = torch.randn(ROWS, WIDTHS[0], dtype=torch.double)
    y = torch.randint(WIDTHS[-1], (ROWS,))
    engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x[:2], method=method, seed=0)
    oracle, optimizer = Oracle(net, update, settled), torch.optim.SGD(net.parameters(), 0.3)
    for step in range(STEPS):
        drawn = torch.randn(rows, WIDTHS[-1], dtype=torch.double)
        monkeypatch.setattr(Belief, "draw", lambda *_, drawn=drawn: drawn)
        part = torch.arange(step * rows, (step + 1) * rows) % ROWS
        expected = oracle.changes(net, x[part], y[part], drawn)
        optimizer.zero_grad()
        engine.backward(x[part], y[part])
        for linear, change in zip(oracle.maps, expected, strict=True):
            assert linear.weight.grad is not None and linear.bias.grad is not None
            torch.testing.assert_close(torch.cat([linear.weight.grad, linear.bias.grad[:, None]], 1), -change)
        optimizer.step()


def test_what_is_not_solved_for_takes_steps_of_adam() -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(6)
    net = nn.Sequential(nn.Linear(5, 6), norm, nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(ROWS, 5, dtype=torch.double), torch.randint(3, (ROWS,))
    method = tp.method("kronecker", decoder=tp.Exact(w=0.0, damping=1.0), update=tp.Kronecker(rate=0.02, momentum=0.8))
    engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x[:2], method=method, seed=0)
    optimizer, seen = torch.optim.SGD(net.parameters(), 0.3), []
    for _ in range(STEPS):
        asked = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), list(norm.parameters()))
        seen.append(torch.stack(asked))
        expected = 0.02 * _nesterov(seen, 0.8) / _average([g.square() for g in seen], 0.99).sqrt()
        optimizer.zero_grad()
        engine.backward(x, y)
        torch.testing.assert_close(torch.stack([p.grad for p in norm.parameters()]), expected)
        optimizer.step()


def test_a_step_does_not_depend_on_the_units_of_loss_and_layer() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(16, 5, dtype=torch.double), torch.rand(16, 3, dtype=torch.double)

    def moved(factor: float, loss: nn.Module) -> Tensor:
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(5, 7), nn.Identity(), nn.Linear(7, 3)).double()
        with torch.no_grad():  # the same function, with a hidden layer in other units
            for p in net[0].parameters():
                p.mul_(factor)
            net[2].weight.div_(factor)
        method = tp.method("kronecker", decoder=tp.Exact(w=0.0, damping=1.0), update=tp.Kronecker(limit=1e3))
        engine = tp.TargetPropagation(net, loss, example_input=x, method=method, seed=0)
        engine.backward(x, y)
        torch.optim.SGD(net[0].parameters(), 0.1).step()
        return net(x).detach()

    before = moved(1.0, nn.BCEWithLogitsLoss())
    torch.testing.assert_close(moved(1.0, nn.BCEWithLogitsLoss(reduction="sum")), before)
    torch.testing.assert_close(moved(10.0, nn.BCEWithLogitsLoss()), before)


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize(("independent", "worth"), [(None, 30), (10, 10)])
def test_a_side_with_few_independent_rows_is_damped_more(diagonal: bool, independent: int | None, worth: int) -> None:
    v = torch.randn(30, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    sides = [Side(4, 0.5, 0.0, shrinkage, diagonal=diagonal).double() for shrinkage in (0.0, 2.0)]
    for side in sides:
        side.observe(v, Batch(10), independent)
        side.refresh()
    plain, damped = (torch.diag(s.inverse) if diagonal else s.inverse for s in sides)
    expected = torch.linalg.inv(torch.linalg.inv(plain) + 2.0 * 4 / worth * torch.eye(4, dtype=torch.double))
    torch.testing.assert_close(damped, expected)


@pytest.mark.parametrize(("kind", "observed", "refreshed"), [(Leading, 2, 30), (Sketch, 60, 1)])
def test_leading_directions_invert_a_moment_of_that_form(kind: type[Leading], observed: int, refreshed: int) -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(12, 12, dtype=torch.double, generator=generator)).Q
    values = torch.tensor([9.0, 5.0, 2.0] + [0.3] * 9, dtype=torch.double)
    moment = basis * values @ basis.T
    side = kind(12, 0.7, 5.0, 0.2, directions=3).double()
    for _ in range(observed):  # a moment that stays
        side.observe((12 * values).sqrt()[:, None] * basis.T, Batch(12))
    for _ in range(refreshed):
        side.refresh()
    v, kept = torch.randn(5, 12, dtype=torch.double, generator=generator), 0.7**observed
    worth = 12 * (1 - kept) * 1.7 / ((1 + kept) * 0.3)
    whole = moment / moment.diagonal().mean() + (5.0 + 0.2 * 12 / worth) * torch.eye(12, dtype=torch.double)
    torch.testing.assert_close(side.solve(v), v @ torch.linalg.inv(whole))


def test_a_sketch_is_exact_of_few_directions_from_the_first_batch_on() -> None:
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(3, 12, dtype=torch.double, generator=generator)
    side = Sketch(12, 0.7, 0.1, 0.0, directions=3).double()
    for _ in range(2):
        side.observe(v, Batch(3))
    side.refresh()
    moment = v.T @ v / 3
    whole = moment / moment.diagonal().mean() + 0.1 * torch.eye(12, dtype=torch.double)
    torch.testing.assert_close(side.solve(torch.eye(12, dtype=torch.double)), torch.linalg.inv(whole))


def test_a_sketch_takes_a_step_of_orthogonal_iteration_on_what_it_knows() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = torch.randn(4, 20, 12, dtype=torch.double, generator=generator)
    side = Sketch(12, 0.7, 0.1, 0.0, directions=3).double()
    for v in batches:
        known = side.directions * side.values @ side.directions.T
        expected = torch.linalg.qr((0.7 * known + 0.3 * v.T @ v / 20) @ side.directions).Q
        side.observe(v, Batch(20))
        torch.testing.assert_close(side.directions @ side.directions.T, expected @ expected.T)


def test_a_sketch_leaves_a_batch_out_that_is_not_finite() -> None:
    side, v = Sketch(6, 0.5, 1.0, 0.0, directions=2), torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    side.observe(v, Batch(8))
    before = {name: value.clone() for name, value in side.state_dict().items()}
    side.observe(v * torch.inf, Batch(8))
    assert all(torch.equal(value, before[name]) for name, value in side.state_dict().items())


@pytest.mark.parametrize("settled", [1, 2, 100])
def test_directions_of_the_last_changes_are_combinations_of_their_rows(
    settled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kronecker, "_SETTLED", settled)
    net, x, y = _network(), torch.randn(ROWS, WIDTHS[0], dtype=torch.double), torch.randint(WIDTHS[-1], (ROWS,))
    method = tp.method("kronecker", update=tp.Kronecker(momentum=0.0, observe=1, every=1))
    engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x, method=method, seed=0)
    update, state = engine.method.update, engine._parts.update_state
    generator = torch.Generator().manual_seed(0)
    assert update.moved("0.weight", 3, generator, state) is None
    engine.backward(x, y)
    net.zero_grad()
    engine.backward(x[:3], y[:3])  # three samples change a map in three directions
    layer = net[0]
    assert isinstance(layer, nn.Linear) and layer.weight.grad is not None and layer.bias.grad is not None
    change = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1)
    found = update.moved("0.weight", 3, generator, state)
    assert found is not None and update.moved("elsewhere", 3, generator, state) is None
    both = torch.linalg.matrix_rank(torch.cat([change, found])), torch.linalg.matrix_rank(found)
    assert both == (3, 3)


def test_leading_directions_follow_a_moment_that_turns() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, scales = torch.randn(200, 40, generator=generator), torch.diag(torch.logspace(1, -2, 40))
    turn = torch.linalg.qr(torch.eye(40) + 0.05 * torch.randn(40, 40, generator=generator)).Q
    following, resting = (Leading(40, 0.0, 5.0, 0.0, directions=8) for _ in range(2))
    for step in range(25):
        for side in (following, resting):
            side.observe(rows @ scales, Batch(200))
            if side is following or step < 10:
                side.refresh()
        scales = scales @ turn
    moment = following.moment / following.moment.diagonal().mean()
    exact = torch.linalg.inv(moment + 5.0 * torch.eye(40))
    errors = [
        torch.linalg.matrix_norm(side.solve(torch.eye(40)) - exact, 2) / torch.linalg.matrix_norm(exact, 2)
        for side in (following, resting)
    ]
    assert errors[0] < 0.15 and errors[1] > 3 * errors[0]


def test_a_map_that_changes_between_two_observations_goes_on() -> None:
    net, x, y = _network(), torch.randn(ROWS, WIDTHS[0], dtype=torch.double), torch.randint(WIDTHS[-1], (ROWS,))
    engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x, method="kronecker", seed=0)
    optimizer, losses = torch.optim.SGD(net.parameters(), 0.1), []
    for step in range(180):
        if step == 170:  # labels are drawn at 168 and 176
            net[0].bias.requires_grad_(False)
        optimizer.zero_grad()
        losses.append(float(engine.backward(x, y).loss))
        optimizer.step()
    assert max(losses[170:]) < losses[0] / 2


@pytest.mark.parametrize("width", [3, 11])
def test_a_layer_of_another_size_goes_on(width: int) -> None:
    net, x, y = _network(), torch.randn(ROWS, WIDTHS[0], dtype=torch.double), torch.randint(WIDTHS[-1], (ROWS,))
    engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x, method="kronecker", seed=0)
    losses = []
    for step in range(40):
        if step == 8:  # the turn of this mirror
            torch.manual_seed(1)
            net[0], net[2] = nn.Linear(WIDTHS[0], width).double(), nn.Linear(width, WIDTHS[2]).double()
        net.zero_grad()
        losses.append(float(engine.backward(x, y).loss))
        torch.optim.SGD(net.parameters(), 0.3).step()
    assert losses[-1] < losses[8] / 2


def test_smoothed_labels_that_are_fitted_well_are_still_those_of_classes() -> None:
    net, x, y = _network(), torch.randn(ROWS, WIDTHS[0], dtype=torch.double), torch.randint(WIDTHS[-1], (ROWS,))
    loss, steps = nn.CrossEntropyLoss(label_smoothing=0.3), 300
    engine = tp.TargetPropagation(net, loss, example_input=x, method="kronecker", seed=0)
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        engine.backward(x, y)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        smooth = 0.7 * nn.functional.one_hot(y, WIDTHS[-1]) + 0.1
        torch.testing.assert_close(net(x).softmax(1), smooth.double(), atol=0.05, rtol=0.0)


@pytest.mark.parametrize("name", ["regularised", "ddtp-linear"])
def test_decoders_without_an_inverse_for_each_layer_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="brings drawn labels down layer by layer"):
        tp.method(name, update=tp.Kronecker())


def test_wide_sides_keep_their_diagonal() -> None:
    net, x = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 2)), torch.randn(4, 6)
    method = tp.method("kronecker", update=tp.Kronecker(most=4))
    engine = tp.TargetPropagation(net, nn.MSELoss(), example_input=x, method=method)
    state = engine.state_dict()["update"]
    shapes = {tuple(value.shape) for name, value in state.items() if name.endswith("average")}
    assert shapes == {(7,), (3, 3), (4, 4), (2,)}


def test_targets_in_other_units_ask_for_the_same_step() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(16, 5, dtype=torch.double), torch.randn(16, 3, dtype=torch.double)
    found = []
    for target in (tp.GradientStep(beta=0.1), tp.GaussNewtonStep(beta=0.02, damping=0.0)):  # H is 2/3 of the identity
        net = _network()
        update = tp.Kronecker(limit=1e9)
        method = tp.method("kronecker", decoder=tp.Exact(w=0.0, damping=1.0), output_target=target, update=update)
        engine = tp.TargetPropagation(net, nn.MSELoss(), example_input=x, method=method, seed=0)
        engine.backward(x, y)
        found.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("setting", ["decrease", "limit", "output_damping", "rate"])
def test_settings_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"update {setting} must be a number > 0"):
        replace(tp.Kronecker(), **{setting: 0.0})


@pytest.mark.parametrize("weight", [1.0, 30.0])
@pytest.mark.parametrize("rows", [3, 4096], ids=["few positions", "all positions"])
@pytest.mark.parametrize("name", ["convolutions", "sequences"])
def test_a_first_step_of_each_map_is_to_lower_the_loss_by_its_share(name: str, rows: int, weight: float) -> None:
    net, x = NETWORKS[name].build(), NETWORKS[name].batch()
    torch.manual_seed(0)
    y = torch.randint(3, net(x).shape[:-1])

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return weight * nn.functional.cross_entropy(z.movedim(-1, 1), y)

    update = tp.Kronecker(limit=1e9, decrease=2.0, rows=rows)
    method = tp.method("kronecker", decoder=tp.Exact(w=0.0, damping=1.0), update=update)
    engine = tp.TargetPropagation(net, loss, example_input=x[:2], method=method, seed=0)
    value = engine.backward(x, y).loss
    maps = [module for module in net.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    for module in maps:
        steps = [p.grad for p in module.parameters()]
        slopes = torch.autograd.grad(loss(net(x), y), list(module.parameters()))
        lowered = sum((g * s).sum() for g, s in zip(slopes, steps, strict=True) if s is not None)
        torch.testing.assert_close(lowered, 2.0 * value / len(maps))


class Picked(nn.Module):
    """Classifies some positions of each sample, not as many of each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x))[x[..., 0] > 0.3])


@pytest.mark.parametrize("settled", [100, 0])
def test_rows_that_were_picked_out_lower_the_loss_by_their_share(settled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Side, "cost", -1)  # as if rows were the cheaper, the more of them there are
    monkeypatch.setattr(kronecker, "_SETTLED", settled)
    torch.manual_seed(0)
    net, x = Picked().double(), rand(6, 5, 3, seed=1)
    y = torch.arange(len(net(x))) % 3
    assert len(y) % 6
    method = tp.method("kronecker", decoder=tp.Exact(w=0.0, damping=1.0), update=tp.Kronecker(limit=1e9, decrease=2.0))
    engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x, method=method, seed=0)
    value = engine.backward(x, y).loss
    for module in (net.first, net.last):
        slopes = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), list(module.parameters()))
        lowered = sum(
            (g * p.grad).sum() for g, p in zip(slopes, module.parameters(), strict=True) if p.grad is not None
        )
        torch.testing.assert_close(lowered, value)  # two maps, half of it each, by twice that


@pytest.mark.parametrize("method", ["kronecker", "least-squares", "l-drl"])
def test_a_model_without_maps_trains(method: str) -> None:
    class Gains(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x * self.gain)

    net, x = Gains(), rand(8, 3, seed=1)
    engine = tp.TargetPropagation(net, nn.MSELoss(), example_input=x, method=method, seed=0)
    engine.backward(x, torch.zeros_like(x))
    (slope,) = torch.autograd.grad(nn.functional.mse_loss(net(x), torch.zeros_like(x)), [net.gain])
    expected = 3e-3 * slope.sign() if method == "kronecker" else slope  # Adam's first step
    torch.testing.assert_close(net.gain.grad, expected)


@pytest.mark.parametrize("name", ["convolutions", "sequences"])
def test_rows_one_by_one_give_the_same_step_as_their_sum(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Side, "cost", -1)  # as if rows were the cheaper, the more of them there are
    x, found = NETWORKS[name].batch(), []
    for settled in (100, 0):
        monkeypatch.setattr(kronecker, "_SETTLED", settled)
        net = NETWORKS[name].build()
        update = tp.Kronecker(limit=1e9)
        method = tp.method("kronecker", decoder=tp.Exact(w=0.0, damping=1.0), update=update)
        engine = tp.TargetPropagation(net, nn.MSELoss(), example_input=x[:2], method=method, seed=0)
        engine.backward(x, torch.zeros_like(net(x)))
        found.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(found[0], found[1])
