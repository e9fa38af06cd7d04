"""From the output's target to every layer's: layerwise, joint and composite."""

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import INVERSE, NETWORKS, Network, invertible, parameters, rand, relative, run, targets
from targetprop.inversion import sample_norm
from targetprop.layers import LayerRecord
from targetprop.targets import Targets, propagate

ROUGH = tp.Exact(w=1.0, damping=0.03)  # a decoder whose errors iteration has to repair


def spread(model: nn.Sequential, delta: Tensor, propagation: str, decoder=ROUGH, x=None, **settings) -> tuple:
    """Return the record and the targets of one propagation."""
    x = rand(len(delta), 3) if x is None else x
    method = tp.Method(
        decoder=decoder,
        propagation=propagation,
        inversion=tp.InputSpace(**({"steps": 100, "tolerance": 1e-12} | settings)),
    )
    engine = tp.TargetPropagation(model, nn.MSELoss(), example_input=x, method=method, seed=0)
    return targets(engine, x, delta)


def distance(a: Targets, b: Targets) -> float:
    return max(float((u - v).abs().max()) for u, v in zip(a.deltas, b.deltas, strict=True))


@pytest.mark.parametrize("propagation", ["joint", "top-down", "composite"])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ELU])
def test_every_converged_propagation_has_the_same_fixed_point(propagation: str, activation) -> None:
    model, delta = invertible(activation, depth=4), 0.05 * rand(5, 3, seed=2)
    _, layerwise = spread(model, delta, "layerwise")
    _, other = spread(model, delta, propagation)
    assert all(s.converged.all() for s in (*layerwise.outcomes.values(), *other.outcomes.values()))
    assert distance(layerwise, other) < 1e-10


def test_converged_targets_reach_the_output_target() -> None:
    model, delta = invertible(depth=4), 0.05 * rand(5, 3, seed=2)
    record, found = spread(model, delta, "layerwise")
    for index in (1, 2, 3):
        y = record.layers[index].x + found.deltas[index - 1]
        for layer in record.layers[index:]:
            y = layer.f(y)
        assert (y - record.output - delta).abs().max() < 1e-11


def test_a_sweep_carries_the_target_down_by_one_layer(monkeypatch) -> None:
    model, delta, x = invertible(depth=4), 0.05 * rand(5, 3, seed=2), rand(5, 3)
    method = tp.Method(decoder=tp.Fixed(), propagation="joint", inversion=tp.InputSpace(steps=3, tolerance=0.0))
    engine = tp.TargetPropagation(model, nn.MSELoss(), example_input=x, method=method, seed=0)
    record = engine.record(x)
    moved: list[bool] = []
    f = LayerRecord.f

    def seen(layer: LayerRecord, x: Tensor) -> Tensor:
        moved.append(not torch.equal(x, layer.x))
        return f(layer, x)

    monkeypatch.setattr(LayerRecord, "f", seen)
    with torch.no_grad():
        found = propagate(record, engine.bank, delta, method.inversion, "joint", measure=False)
    assert moved == [False, False, True, False, True, True, True, True, True]  # three layers, sweep by sweep
    assert found.deltas[0].abs().min() > 0


def test_sweeps_with_exact_inverses_of_a_linear_network_are_exact_after_as_many_as_layers() -> None:
    model, delta = nn.Sequential(*[m for m in invertible(depth=4) if isinstance(m, nn.Linear)]), rand(5, 3, seed=2)
    _, layerwise = spread(model, delta, "layerwise", INVERSE, steps=1)
    _, joint = spread(model, delta, "joint", INVERSE, steps=3)
    assert distance(layerwise, joint) < 1e-12


def test_the_first_sweep_from_the_top_down_gives_difference_targets() -> None:
    model, delta = invertible(depth=4), 0.05 * rand(5, 3, seed=2)
    _, difference = spread(model, delta, "layerwise", steps=1, tolerance=0.0)
    _, once = spread(model, delta, "top-down", steps=1, tolerance=0.0)
    assert distance(difference, once) < 1e-14


def test_sweeps_from_the_top_down_are_gauss_seidel_on_the_joint_equations() -> None:
    """Affine layers: each sweep is ``u_l ← u_l + G (u_{l+1} − A u_l)`` with the newest ``u_{l+1}``."""
    model, delta = nn.Sequential(*[m for m in invertible(depth=4) if isinstance(m, nn.Linear)]), rand(5, 3, seed=2)
    record, found = spread(model, delta, "top-down", steps=3, tolerance=0.0)
    A = [linear.weight.detach().T for linear in model[1:]]
    G = [torch.linalg.solve(a.T @ a + 0.03 * torch.eye(3).double(), a.T) for a in A]
    u = [torch.zeros_like(delta) for _ in A] + [delta]
    for _ in range(3):
        for layer in (2, 1, 0):
            u[layer] = u[layer] + (u[layer + 1] - u[layer] @ A[layer]) @ G[layer]
    assert max(float((a - b).abs().max()) for a, b in zip(u, found.deltas, strict=True)) < 1e-10


def test_sweeps_through_strongly_contracting_layers_do_not_count_as_divergence() -> None:
    model, delta = nn.Sequential(*[nn.Linear(3, 3) for _ in range(5)]).double(), rand(4, 3, seed=2)
    for linear in model:
        linear.weight.data = 0.1 * torch.eye(3, dtype=torch.float64)  # each inverse is ten times as long
    delta[1] = 0.0
    _, found = spread(model, delta, "joint", INVERSE, steps=20)
    _, expected = spread(model, delta, "layerwise", INVERSE)
    solution = found.outcomes["all"]
    assert solution.converged.all() and distance(found, expected) < 1e-7
    assert int(solution.steps[1]) == 0 and float(solution.forward_residual[1]) == 0.0


def test_sweeps_that_overflow_fall_back_to_difference_targets() -> None:
    """Only sample 1 leaves the range of ``f``; the others are as they would be without it, to the bit."""

    class Overflow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + (x / 1e3) ** 400

    torch.manual_seed(0)
    model = {"1": nn.Linear(3, 3), "2": nn.Sequential(Overflow(), nn.Linear(3, 3)), "3": nn.Linear(3, 3)}
    model = {name: module.double() for name, module in model.items()}
    delta = rand(4, 3, seed=2)
    far = delta.clone()
    far[1] *= 1e9
    (_, bad), (_, good) = (spread(model, d, "joint", INVERSE, steps=20) for d in (far, delta))
    _, once = spread(model, far, "layerwise", INVERSE, steps=1)
    keep = torch.tensor([0, 2, 3])
    assert bad.outcomes["all"].status.tolist()[1] == tp.Status.FALLBACK
    for found, expected, difference in zip(bad.deltas, good.deltas, once.deltas, strict=True):
        assert torch.equal(found[keep], expected[keep])
        torch.testing.assert_close(found[1], difference[1])


def test_too_few_sweeps_are_refused() -> None:
    with pytest.raises(
        ValueError, match="reach the bottom of 4 layers after 3 steps, and inversion.steps is 2; raise it"
    ):
        spread(invertible(depth=4), rand(5, 3), "joint", steps=2)


@pytest.mark.parametrize("propagation", ["joint", "top-down"])
def test_sweeps_are_an_input_space_iteration(propagation: str) -> None:
    with pytest.raises(ValueError, match=f"{propagation} sweeps .* input-space"):
        tp.Method(propagation=propagation, inversion=tp.OutputSpace())


def test_composite_corrects_errors_that_pile_up() -> None:
    model, delta = invertible(nn.Tanh, depth=5), 0.02 * rand(6, 3, seed=2)
    record, layerwise = spread(model, delta, "layerwise", steps=1)
    _, composite = spread(model, delta, "composite", steps=4)

    def missed(found: Targets) -> Tensor:
        y = record.layers[1].x + found.deltas[0]
        for layer in record.layers[1:]:
            y = layer.f(y)
        return sample_norm(y - record.output - delta)

    assert (missed(composite) < 0.5 * missed(layerwise)).all()
    assert torch.allclose(composite.outcomes["2"].forward_residual, missed(composite), rtol=1e-6, atol=1e-14)


def test_composite_decoders_are_chained_in_their_differential_form() -> None:
    case = NETWORKS["tanh"]
    model, x = case.build(), case.batch()
    method = tp.Method(decoder=tp.Denoising(activation="inverse"))
    engine = tp.TargetPropagation(model, nn.MSELoss(), example_input=x, method=method, seed=0)
    record = engine.record(x)
    with torch.no_grad():
        G = engine.bank.composite(record.layers[1:])
        assert (G(record.output) - record.layers[1].x).abs().max() < 1e-14
        c = 0.1 * rand(5, 3, seed=3)
        h = [layer.x for layer in record.layers]
        top, low = engine.bank.inverse(record.layers[2]), engine.bank.inverse(record.layers[1])
        expected = h[1] + low(h[2] + top(record.output + c) - top(record.output)) - low(h[2])
        assert torch.allclose(G(record.output + c), expected, rtol=1e-12)
        assert torch.allclose(G.difference(record.output + c, c), G(record.output + 2 * c) - expected, rtol=1e-9)


def test_a_single_layer_needs_no_target_below() -> None:
    case = NETWORKS["one layer"]
    engine = tp.TargetPropagation(case.build(), nn.MSELoss(), example_input=case.batch(), method="dtp")
    assert engine.backward(case.batch(), rand(5, 3)).outcomes == {}


def test_layers_see_their_own_inversion_in_the_report() -> None:
    model, x, y = invertible(depth=3), rand(5, 3), rand(5, 3, seed=1)
    for propagation in ("layerwise", "composite", "joint"):
        method = tp.Method(decoder=ROUGH, propagation=propagation, inversion=tp.InputSpace(steps=2, tolerance=0.0))
        engine = tp.TargetPropagation(model, nn.MSELoss(), example_input=x, method=method)
        report = engine.backward(x, y, measure=True)
        delta = method.output_target(report.output, y, nn.MSELoss()).delta
        top = report.outcomes["all" if propagation == "joint" else "4"]
        expected = float(top.forward_residual.square().sum().sqrt() / delta.norm())
        assert report.residuals()["all" if propagation == "joint" else "4"] == pytest.approx(expected, rel=1e-10)
        assert report.shares(tp.Status.MAX_STEPS) == dict.fromkeys(report.outcomes, 1.0)
        if propagation == "composite":  # every layer's inversion is asked for the output's change
            expected = float(report.outcomes["2"].forward_residual.square().sum().sqrt() / delta.norm())
            assert report.residuals()["2"] == pytest.approx(expected, rel=1e-10)


class Folded(nn.Module):
    """Folds positions into samples after its map."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x).reshape(-1, 3)


@pytest.mark.parametrize("propagation", ["joint", "top-down"])
def test_sweeps_through_layers_that_fold_positions_into_samples_reach_the_layer_wise_fixed_point(
    propagation: str,
) -> None:
    torch.manual_seed(0)
    x, layers = rand(4, 2, 3), [nn.Linear(3, 3), nn.Tanh(), Folded(), nn.Linear(3, 3)]
    model, delta = nn.Sequential(*layers).double(), 0.01 * rand(8, 3, seed=2)
    for linear in (m for m in model.modules() if isinstance(m, nn.Linear)):
        linear.weight.data = torch.eye(3, dtype=torch.float64) + 0.1 * linear.weight.data
    _, layerwise = spread(model, delta, "layerwise", x=x, steps=60)
    _, swept = spread(model, delta, propagation, x=x, steps=60)
    assert [d.shape for d in swept.deltas] == [d.shape for d in layerwise.deltas]
    assert distance(layerwise, swept) < 1e-9


class Tied(nn.Module):
    """A weight used by two layers, and a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.gain = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x)) * self.gain
        return self.last(torch.tanh(self.again(torch.tanh(self.again(h)))))


STRAIGHT = {
    "l-drl": tp.method("l-drl"),
    "kronecker": tp.method("kronecker", update=tp.Kronecker(observe=2, every=2)),
    "least-squares": tp.method("least-squares"),
    "delta rule": tp.method("l-drl", update=tp.DeltaRule(pullback="transpose")),
}


@pytest.mark.parametrize("method", STRAIGHT)
@pytest.mark.parametrize("name", ["layer norm", "convolutions", "sequences", "dropout", "nested", "one layer", "tied"])
def test_one_backward_pass_asks_the_same_as_layer_by_layer(name: str, method: str) -> None:
    network = Network(Tied, (4,)) if name == "tied" else NETWORKS[name]
    ends = []
    for measure in (False, True):  # what is measured goes layer by layer
        model, x = network.build(), network.batch(6)
        y = rand(*run(model, x).shape, seed=3)
        engine = tp.TargetPropagation(model, nn.MSELoss(), example_input=x, method=STRAIGHT[method], seed=0)
        for step in range(4):
            torch.manual_seed(step)
            report = engine.backward(x, y, measure=measure)
            assert bool(report.delta_norms) == measure and (measure or not report.outcomes)
            with torch.no_grad():
                for p in parameters(model):
                    p -= 0.05 * p.grad
                    p.grad = None
        ends.append(torch.cat([p.detach().flatten() for p in parameters(model)]))
    assert relative(*ends) < 1e-9


class Doubled(tp.Influence):
    """A user's own scaling."""

    def __call__(self, deltas: list[Tensor], delta_out: Tensor) -> list[Tensor]:
        return [delta if delta is delta_out else 2 * delta for delta in deltas]


def test_a_scaling_of_the_users_is_not_passed_over() -> None:
    network, found = NETWORKS["tanh"], []
    for influence in (tp.Influence(), Doubled()):
        model, x = network.build(), network.batch(6)
        method = tp.method("l-drl", influence=influence)
        tp.TargetPropagation(model, nn.MSELoss(), example_input=x, method=method, seed=0).backward(x, rand(6, 3))
        found.append([p.grad for p in parameters(model)])
    for plain, scaled, factor in zip(*found, [2.0] * (len(found[0]) - 2) + [1.0] * 2, strict=True):
        torch.testing.assert_close(scaled, factor * plain, rtol=1e-12, atol=0.0)
