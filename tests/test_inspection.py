"""Inspection against dense algebra: contraction, residuals, angles; what it must leave alone; the advice it gives."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import DTYPE, INVERSE, LOSSES, NETWORKS, TRANSPOSE, invertible, modules, parameters, rand
from targetprop.diagnostics import (
    InverseQuality,
    LayerInspection,
    advise,
    angle,
    inspect_targets,
    layer_jacobian,
)
from targetprop.diagnostics import angles as angles_module
from targetprop.diagnostics.inverse_quality import AskedInverse, measure_inverse
from targetprop.inversion import Problem

CROSS_ENTROPY = LOSSES["cross-entropy"]
DIFFERENTIAL = tp.GradientStep(1e-4)


def build(model, x: Tensor, loss=None, **parts) -> tp.TargetPropagation:
    method = parts.pop("method", None) or tp.Method(**parts)
    return tp.TargetPropagation(model, loss or CROSS_ENTROPY.loss, example_input=x, method=method, seed=3)


def mlp(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).to(DTYPE)


def jacobian_of(g, y: Tensor) -> Tensor:
    """Differentiate a map sample by sample, densely."""
    rows = torch.autograd.functional.jacobian(lambda v: g(v).sum(0), y)
    return rows.transpose(0, 1)


def largest(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix, ord=2).detach()


def same_factors(quality: InverseQuality, norms: Tensor, halved: Tensor, rel: float = 1e-3) -> None:
    assert quality.contraction == pytest.approx(float(norms.quantile(0.5)), rel=rel)
    assert quality.contraction_max == pytest.approx(float(norms.max()), rel=rel)
    assert quality.contraction_half == pytest.approx(float(halved.quantile(0.5)), rel=rel)
    assert quality.contracting == pytest.approx(float((norms < 1).double().mean()))


@pytest.mark.parametrize("rule", [tp.Difference(), tp.InputSpace(steps=3, alpha=0.6), tp.OutputSpace(steps=2)])
def test_contraction_is_the_largest_singular_value_on_the_smaller_side(rule) -> None:
    x, y = rand(7, 4), torch.arange(7) % 3
    engine = build(mlp(4, 3, 5, 3), x, decoder=tp.Fixed(), inversion=rule)
    found = inspect_targets(engine, x, y).layers
    record, alpha = engine.record(x), getattr(rule, "alpha", 1.0)
    for index in (1, 2):
        layer, quality = record.layers[index], found[index].inverse
        jf, jg = layer_jacobian(layer), jacobian_of(engine.bank.inverse(record.layers[index]), layer.h)
        wider = index == 1
        assert quality.space == ("input" if wider else "output") and quality.kind == "fixed"
        product = jg @ jf if wider else jf @ jg
        eye = torch.eye(product.shape[-1], dtype=DTYPE)
        same_factors(quality, largest(eye - alpha * product), largest(eye - alpha / 2 * product))


def test_contraction_of_direct_inversion_is_at_the_decoded_point() -> None:
    x = rand(7, 4)
    engine = build(mlp(4, 6, 5, 3), x, decoder=tp.Fixed(), inversion=tp.Direct())
    quality = inspect_targets(engine, x, torch.arange(7) % 3).layers[1].inverse
    record = engine.record(x)
    layer, g = record.layers[1], engine.bank.inverse(record.layers[1])
    product = jacobian_of(lambda u: layer.f(g(u)), layer.h)
    eye = torch.eye(5, dtype=DTYPE)
    same_factors(quality, largest(eye - product), largest(eye - product / 2))


def test_contraction_of_exact_decoders_needs_no_derivative_of_their_solver(short_trials) -> None:
    x = rand(7, 4)
    engine = build(mlp(4, 3, 5, 3), x, decoder=tp.Exact(w=1.0, damping=0.3), inversion=tp.OutputSpace(steps=2))
    record = engine.record(x)
    for layer, found in zip(record.layers[1:], inspect_targets(engine, x, torch.arange(7) % 3).layers[1:], strict=True):
        jacobian = layer_jacobian(layer)
        smallest = torch.linalg.svdvals(jacobian)[:, -1].detach()
        factor = 0.3 / (smallest**2 + 0.3)
        same_factors(found.inverse, factor, 1 - 0.5 * smallest**2 / (smallest**2 + 0.3), rel=0.01)


def test_contraction_of_regularised_inversion_is_of_its_own_step() -> None:
    x, rule = rand(7, 4), tp.Regularised(steps=3, alpha=0.4, damping=0.2)
    engine = build(mlp(4, 6, 5, 3), x, decoder=tp.NoDecoder(), inversion=rule)
    found = inspect_targets(engine, x, torch.arange(7) % 3).layers[1].inverse
    jacobian = layer_jacobian(engine.record(x).layers[1])
    step, eye = jacobian.mT @ jacobian + 0.2 * torch.eye(6, dtype=DTYPE), torch.eye(6, dtype=DTYPE)
    same_factors(found, largest(eye - 0.4 * step), largest(eye - 0.2 * step), rel=0.01)
    assert found.kind == "none, regularised" and found.space == "input"


def test_composite_inverses_are_measured_against_all_layers_above() -> None:
    x = rand(7, 4)
    engine = build(mlp(4, 6, 5, 3), x, decoder=tp.DirectFeedback(), propagation="composite")
    found = inspect_targets(engine, x, torch.arange(7) % 3).layers[1].inverse
    record = engine.record(x)
    forward = layer_jacobian(record.layers[2]) @ layer_jacobian(record.layers[1])
    product = forward @ jacobian_of(engine.bank.composite(record.layers[1:]), record.output)
    eye = torch.eye(3, dtype=DTYPE)
    same_factors(found, largest(eye - product), largest(eye - product / 2))
    assert found.kind == "direct feedback, learned" and found.space == "output"


@pytest.mark.parametrize(
    "network", ["tanh", "layer norm", "batch norm in eval", "list", "dictionary", "pre-activation"]
)
def test_transposes_point_where_back_propagation_does(network: str) -> None:
    case = NETWORKS[network]
    x, y = case.batch(), CROSS_ENTROPY.labels(5)
    engine = build(case.build(), x, decoder=TRANSPOSE, cut=case.cut, output_target=DIFFERENTIAL)
    found = inspect_targets(engine, x, y)
    assert [layer.name for layer in found.layers] == engine.network.names
    assert all(layer.angle_backprop < 1e-4 and (layer.angle_gradient or 0.0) < 1e-4 for layer in found.layers)
    assert sum(layer.angle_gradient is not None for layer in found.layers) >= 2
    assert found.layers[0].inverse is None and all(layer.inverse for layer in found.layers[1:])
    assert found.loss == pytest.approx(float(CROSS_ENTROPY.loss(engine.record(x).output, y)))


def test_exact_inverses_of_an_invertible_network_point_where_gauss_newton_does() -> None:
    x = rand(6, 3)
    engine = build(invertible(), x, decoder=INVERSE, inversion=tp.OutputSpace(steps=5), output_target=DIFFERENTIAL)
    layers = inspect_targets(engine, x, torch.arange(6) % 3).layers
    assert all(layer.angle_gauss_newton < 1e-2 for layer in layers)
    assert layers[0].angle_backprop > 5
    assert all(layer.inverse.residual < 1e-3 and layer.inverse.converged == 1 for layer in layers[1:])
    record = engine.record(x)
    change = engine.method.output_target(record.output, torch.arange(6) % 3, engine.loss).delta
    jacobian = layer_jacobian(record.layers[2]) @ layer_jacobian(record.layers[1])
    delta = torch.linalg.solve(jacobian, change)
    assert layers[0].influence == pytest.approx(float((change.norm(dim=1) / delta.norm(dim=1)).quantile(0.5)), rel=1e-3)


def rotated(size: float, steps: int) -> tuple[tp.TargetPropagation, Tensor, Tensor]:
    """Two linear layers of which the second has an inverse that is wrong by a rotation of the given size."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(DTYPE)
    net[1].weight.data = torch.eye(4, dtype=DTYPE) + 0.1 * rand(4, 4)
    rotation = torch.linalg.qr(rand(4, 4, seed=1))[0]
    g = nn.Linear(4, 4, bias=False).to(DTYPE)
    g.weight.data = torch.linalg.solve(net[1].weight.data, torch.eye(4, dtype=DTYPE) - size * rotation)
    method = tp.Method(inversion=tp.OutputSpace(steps=steps, tolerance=0.0))
    x = rand(6, 4, seed=2)
    return tp.TargetPropagation(net, nn.MSELoss(), example_input=x, method=method, decoders={"1": g}), x, rand(6, 4)


def test_a_linear_inverse_wrong_by_half_a_rotation() -> None:
    found = inspect_targets(*rotated(0.5, steps=3)).layers[1].inverse
    assert (found.contraction, found.contraction_max) == (pytest.approx(0.5), pytest.approx(0.5))
    assert found.residual == pytest.approx(0.5**4) and found.residual_iterated == pytest.approx(0.5**24)
    assert (found.contracting, found.converged, found.diverged) == (1.0, 1.0, 0.0)


def test_a_perfect_inverse_converges_though_its_steps_are_rounding() -> None:
    found = inspect_targets(*rotated(0.0, steps=3)).layers[1].inverse
    assert found.contraction < 1e-12 and found.residual < 1e-12
    assert (found.converged, found.diverged) == (1.0, 0.0)


def test_a_sample_that_was_near_its_target_before_it_diverged_counts_as_converged() -> None:
    x, gains = torch.zeros(2, 2, dtype=DTYPE), torch.tensor([21.0, 1.0], dtype=DTYPE)
    change = torch.tensor([[1e-5, 1.0], [1.0, 1.0]], dtype=DTYPE)
    asked = AskedInverse(Problem(lambda x: x, lambda y: gains * y, change, x, x), "steep")
    found = measure_inverse(asked, tp.OutputSpace(steps=1), change)
    assert (found.converged, found.diverged) == (0.5, 0.5)


def test_a_broken_inverse_is_called_by_its_norm() -> None:
    engine, x, y = rotated(1.7, steps=3)
    layer = inspect_targets(engine, x, y).layers[1]
    found = layer.inverse
    assert (found.contraction, found.contracting) == (pytest.approx(1.7), 0.0)
    assert found.residual == pytest.approx(1.7) and found.residual_iterated == pytest.approx(1.7), "the first is best"
    assert (found.converged, found.diverged) == (0.0, 1.0)
    sentence = advise(layer, engine.method)
    assert sentence.startswith("layer 1: f∘g − id has norm 1.7 > 1 and iterating diverges for 100% of the samples: ")
    assert "raise decoder.updates from 1 to 4" in sentence


def test_an_inverse_that_overshoots_is_cured_by_half_steps() -> None:
    engine, x, y = rotated(0.0, steps=3)
    engine.bank.layers["1"].learned["own"].weight.data *= 2.5
    layer = inspect_targets(engine, x, y).layers[1]
    assert layer.inverse.contraction == pytest.approx(1.5) and layer.inverse.contraction_half == pytest.approx(0.25)
    assert "lower inversion.alpha from 1 to 0.5 (norm 0.25)" in advise(layer, engine.method)
    halved = replace(engine.method, inversion=replace(engine.method.inversion, alpha=0.5))
    engine.method = halved
    layer = inspect_targets(engine, x, y).layers[1]
    assert layer.inverse.contraction == pytest.approx(0.25) and layer.inverse.converged == 1.0
    assert advise(layer, halved).startswith("layer 1: fine: residual ")


def snapshot(engine: tp.TargetPropagation) -> list:
    """Copy everything that an inspection might touch."""
    found: list = [torch.get_rng_state()]
    for module in modules(engine.model):
        found += [*module.state_dict().values(), *(m.training for m in module.modules())]
    found += [p.grad for p in [*parameters(engine.model), *engine.bank.parameters()]]
    state = engine.state_dict()
    found += [*state["decoders"].values(), *state["update"].values(), *state["generators"].values()]
    return [value.clone() if isinstance(value, Tensor) else value for value in found]


def same(old: list, new: list) -> bool:
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a is b for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize(
    ("network", "update"),
    [
        ("dropout", tp.LeastSquares()),
        ("batch norm in eval", tp.DeltaRule(pullback="transpose")),
        ("list", tp.Gradient()),
        ("one activation used twice", tp.LeastSquares()),
    ],
)
def test_everything_is_left_as_it_was(network: str, update, short_trials) -> None:
    case = NETWORKS[network]
    model, x, y = case.build(), case.batch(), CROSS_ENTROPY.labels(5)
    for module in modules(model):
        module.train()
    engine = build(model, x, update=update, influence=tp.Influence(normalise=True))
    engine.backward(x, y)
    gradients, old = [p.grad for p in parameters(model)], snapshot(engine)
    with torch.no_grad():
        first = inspect_targets(engine, x, y)
    assert same(old, snapshot(engine))
    assert all(p.grad is g for p, g in zip(parameters(model), gradients, strict=True))
    for p in parameters(model):
        p.grad = None
    old = snapshot(engine)
    assert inspect_targets(engine, x, y) == first
    assert same(old, snapshot(engine))


def test_everything_is_left_as_it_was_after_a_failure() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).to(DTYPE)
    x, y = rand(5, 4), CROSS_ENTROPY.labels(5)
    engine = build(model, x)
    engine.backward(x, y)
    old = snapshot(engine)
    with pytest.raises(FloatingPointError, match="the loss on these samples is NaN or infinite"):
        inspect_targets(engine, x * torch.nan, y)
    assert same(old, snapshot(engine))


class Drawing(nn.Module):
    """A layer that uses random numbers up, whatever its mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * torch.rand_like(x)


def test_the_random_state_is_left_as_it_was(short_trials) -> None:
    net, x = nn.Sequential(nn.Linear(4, 4), Drawing(), nn.Linear(4, 3)).to(DTYPE), rand(5, 4)
    engine = build(net, x, decoder=TRANSPOSE)
    old = torch.get_rng_state()
    inspect_targets(engine, x, torch.arange(5) % 3)
    assert torch.equal(torch.get_rng_state(), old)


def test_the_gradient_is_what_the_next_step_would_write(short_trials) -> None:
    x, y, parts = rand(6, 4), torch.arange(6) % 3, {"decoder": TRANSPOSE, "update": tp.LeastSquares(every=1)}
    net = mlp(4, 6, 5, 3)
    engine = build(net, x, **parts)
    for seed in range(3):
        engine.backward(rand(6, 4, seed=seed), y)
    found = inspect_targets(engine, x, y).layers
    for p in net.parameters():
        p.grad = None
    engine.backward(x, y)
    for layer, measured in zip(engine.network.layers, found, strict=True):
        group = list(layer.parameters())
        slopes = torch.autograd.grad(CROSS_ENTROPY.loss(net(x), y), group)
        written, slope = (torch.cat([t.flatten() for t in ts])[None] for ts in ([p.grad for p in group], slopes))
        assert measured.angle_gradient == pytest.approx(float(angle(written, slope)), rel=1e-6)
        assert measured.angle_gradient > 1


def test_influence_is_measured_before_it_is_normalised(short_trials) -> None:
    x, y = rand(6, 4), torch.arange(6) % 3
    plain, normalised = (
        inspect_targets(build(mlp(4, 6, 5, 3), x, influence=tp.Influence(normalise=flag)), x, y).layers
        for flag in (False, True)
    )
    assert plain[0].influence == normalised[0].influence
    assert plain[0].angle_backprop == pytest.approx(normalised[0].angle_backprop)
    assert plain[0].angle_gradient != pytest.approx(normalised[0].angle_gradient, rel=1e-3)


def test_wide_outputs_are_compared_with_gauss_newton_on_fewer_samples(monkeypatch, short_trials) -> None:
    x, y = rand(6, 4), torch.arange(6) % 3
    engine = build(mlp(4, 6, 5, 3), x, decoder=TRANSPOSE)
    first = inspect_targets(engine, x[:2], y[:2]).layers[0].angle_gauss_newton
    assert inspect_targets(engine, x, y).layers[0].angle_gauss_newton != pytest.approx(first)
    monkeypatch.setattr(angles_module, "MOST_ENTRIES", 2 * 3 * (6 + 5 + 3))
    assert inspect_targets(engine, x, y).layers[0].angle_gauss_newton == pytest.approx(first)


def test_refusals() -> None:
    net, x, y = mlp(4, 5, 3), rand(5, 4), torch.arange(5) % 3
    with pytest.raises(ValueError, match="method 'backprop' has no inverses to inspect; train with one that has"):
        inspect_targets(build(net, x, method=tp.method("backprop")), x, y)
    with pytest.raises(ValueError, match="the batch is empty"):
        inspect_targets(build(net, x), x[:0], y[:0])


@pytest.mark.parametrize("name", [name for name in tp.METHODS if name != "backprop"])
def test_every_method_is_inspected(name: str, short_trials) -> None:
    x, y, heard = rand(6, 4).float(), torch.arange(6) % 3, []
    engine = build(mlp(4, 6, 5, 3).float(), x, loss=nn.CrossEntropyLoss(), method=tp.method(name))
    for _ in range(3):
        engine.train_decoders(x)
    found = inspect_targets(engine, x, y, on_layer=lambda *place: heard.append(place))
    assert found.samples == 6 and heard == [(2, 3), (3, 3)]
    assert [(layer.name, layer.width) for layer in found.layers] == [("0", 6), ("2", 5), ("4", 3)]
    for layer in found.layers[1:]:
        assert all(value is not None for value in vars(layer.inverse).values())
        assert 0 <= layer.inverse.converged + layer.inverse.diverged <= 1
    for layer in found.layers:
        assert 0 <= layer.angle_backprop <= 180 and 0 <= layer.angle_gauss_newton <= 180
        assert 0 <= layer.angle_gradient <= 180 and layer.influence > 0
        assert advise(layer, engine.method).startswith(f"layer {layer.name}: ")
    assert found.layers[2].angle_backprop < 0.1 and found.layers[2].influence == pytest.approx(1, rel=1e-5)


def test_joint_sweeps_are_inspected_layer_by_layer() -> None:
    x, y = rand(6, 3), torch.arange(6) % 3
    rule = tp.InputSpace(steps=30)
    engine = build(invertible(), x, decoder=INVERSE, inversion=rule, propagation="joint", output_target=DIFFERENTIAL)
    for layer in inspect_targets(engine, x, y).layers[1:]:
        assert layer.inverse.residual < 1e-3 and layer.inverse.contraction < 1e-6 and layer.angle_gauss_newton < 0.1


class Once(nn.Module):
    """A layer that can be differentiated only once."""

    class Slope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, gradient: Tensor) -> Tensor:
            return 2 * gradient

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:
            raise RuntimeError("the second derivative is not implemented")

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:
            return Once.Slope.apply(gradient)

    def forward(self, x: Tensor) -> Tensor:
        return self.Twice.apply(x)


class Cut(nn.Module):
    """A layer that autograd cannot see through."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach() * 2


@pytest.mark.parametrize("layer", [Once(), Cut()], ids=["once", "never"])
def test_what_cannot_be_differentiated_is_left_out(layer: nn.Module) -> None:
    net, x = [nn.Linear(4, 4), layer, nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 3)], rand(5, 4)
    net = [module.to(DTYPE) for module in net]
    custom = {name: nn.Linear(*size).to(DTYPE) for name, size in {"1": (4, 4), "2": (4, 4), "3": (3, 4)}.items()}
    engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x, method="dtp", decoders=custom)
    found = inspect_targets(engine, x, torch.arange(5) % 3).layers
    assert found[1].inverse.residual is not None and found[2].inverse.contraction is not None
    once = isinstance(layer, Once)
    assert (found[1].inverse.contraction is None) == once, "without any derivative of f, f∘g − id is −id"
    assert (found[0].angle_backprop is not None) == once and (found[0].angle_gauss_newton is not None) == once
    assert all(advise(layer, engine.method) for layer in found)


def test_what_is_not_there_is_none() -> None:
    x, loss = rand(5, 4), LOSSES["squared error"].loss
    net = mlp(4, 3, 3, 3)
    net[2].requires_grad_(False)
    engine = build(net, x, loss=loss)
    found = inspect_targets(engine, x, rand(5, 3)).layers
    assert found[0].inverse is None and found[1].inverse is not None
    assert [layer.angle_gradient is None for layer in found] == [False, True, False]
    still = inspect_targets(engine, x, net(x).detach()).layers
    assert all(layer.influence is None and layer.angle_backprop is None for layer in still)
    assert still[1].inverse.converged is None and still[1].inverse.residual is None
    net[0].requires_grad_(False)  # and nothing that is trained lies below the last layer
    (last,) = inspect_targets(build(net, x, loss=loss), x, rand(5, 3)).layers
    assert last.name == "4" and last.inverse is None and last.angle_gradient is not None
    assert advise(still[1], engine.method) == "layer 2: these samples ask for no change; inspect others"
    (only,) = inspect_targets(build(mlp(4, 3), x), x, torch.arange(5) % 3).layers
    assert only.inverse is None and advise(only, engine.method).startswith("layer 0: fine: ")


def test_a_decoder_that_returns_nothing_is_noticed_below() -> None:
    engine, x, y = rotated(1.0, steps=0)
    engine.bank.layers["1"].learned["own"].weight.data.zero_()
    below = inspect_targets(engine, x, y).layers[0]
    assert below.influence == float("inf") and below.angle_backprop is None
    assert "its target does not move" in advise(below, engine.method)


def test_angles() -> None:
    a, b = (
        torch.tensor([[1.0, 0.0]] * 4, dtype=DTYPE),
        torch.tensor([[3.0, 0.0], [0, 1], [-1, 0], [1, 1e-9]], dtype=DTYPE),
    )
    assert torch.allclose(angle(a, b), torch.tensor([0.0, 90.0, 180.0, 1e-9 * 180 / torch.pi], dtype=DTYPE), rtol=1e-6)
    assert bool(torch.isnan(angle(a, torch.zeros_like(a))).all())


GOOD = InverseQuality("learned", "output", 0.9, 0.95, 0.95, 1.0, 0.6, 0.1, 1.0, 0.0)
BAD = {
    "diverging": LayerInspection(
        "2", 9, replace(GOOD, contraction=1.7, contraction_half=1.3, diverged=0.4), 1.0, 30.0, 30.0, 30.0
    ),
    "overshooting": LayerInspection(
        "2", 9, replace(GOOD, contraction=1.7, contraction_half=0.4, diverged=0.4), 1.0, 30.0, 30.0, 30.0
    ),
    "stalled": LayerInspection("2", 9, replace(GOOD, contraction=1.7, residual_iterated=0.6), 1.0, 30.0, 30.0, 30.0),
    "lost": LayerInspection("2", 9, GOOD, 0.1, 80.0, 75.0, 60.0),
    "lost and small": LayerInspection("2", 9, GOOD, 30.0, 80.0, 75.0, 60.0),
    "ascending": LayerInspection("2", 9, GOOD, 0.1, 60.0, 60.0, 95.0),
    "not moving": LayerInspection("2", 9, GOOD, float("inf"), None, None, None),
}
VARIANTS = {
    **{name: tp.method(name) for name in tp.METHODS if name != "backprop"},
    "iterated ridge": tp.method("learned-inverse", decoder=tp.Ridge()),
    "iterated exact": tp.method("learned-inverse", decoder=tp.Exact(damping=0.0)),
    "iterated l-drl": tp.method("l-drl", inversion=tp.OutputSpace(steps=5)),
    "iterated drl": tp.method("drl", inversion=tp.OutputSpace(steps=5)),
    "iterated fixed": tp.method("fw-dtp", inversion=tp.InputSpace(steps=5)),
    "iterated with inverse slopes": tp.method(
        "dtp", decoder=tp.Denoising(activation="inverse"), inversion=tp.InputSpace()
    ),
}


@pytest.mark.parametrize("problem", BAD)
def test_advice_names_settings_that_the_run_has(problem: str) -> None:
    judged = problem in ("diverging", "overshooting", "stalled")
    for variant, method in VARIANTS.items():
        sentence = advise(BAD[problem], method)
        if judged and (not hasattr(method.inversion, "steps")):
            said = "layer 2: fine: residual 0.6, not to be iterated since f∘g − id has norm 1.7 > 1"
            assert sentence.startswith(said), variant
            continue
        if judged and isinstance(method.inversion, tp.Krylov):  # best steps do not diverge
            assert sentence.startswith("layer 2: fine: residual 0.6, 0."), variant
            continue
        assert sentence.startswith("layer 2: ") and "fine" not in sentence and sentence.count(": ") == 2, variant
        named = re.findall(r"\b(decoder|inversion|influence)\.(\w+)", sentence)
        assert named or "propagation to composite" in sentence, variant
        for part, option in named:
            assert option in ("rule", "objective") or hasattr(getattr(method, part), option), sentence


@pytest.mark.parametrize(
    ("name", "problem", "remedy"),
    [
        ("tp", "lost", "set inversion.rule to difference"),
        ("gait", "lost", "raise decoder.damping from 0 to 0.1"),
        ("learned-inverse", "lost", "raise decoder.damping from 3 to 30"),
        ("krylov", "lost", "raise inversion.damping from 0.3 to 3 and lower inversion.steps from 2 to 1"),
        ("learned-inverse", "lost and small", "raise decoder.updates from 1 to 4"),
        ("learned-inverse", "diverging", "raise decoder.updates from 1 to 4 or raise decoder.damping from 3 to 30"),
        (
            "learned-inverse",
            "overshooting",
            "lower inversion.alpha from 1 to 0.5 (norm 0.4) or raise decoder.updates from 1 to 4",
        ),
        ("l-drl", "lost", "raise decoder.updates from 1 to 4"),
        ("fw-dtp", "lost", "learn the decoders (choose another decoder.objective)"),
        ("regularised", "diverging", "lower inversion.alpha from 0.15 to 0.075"),
        (
            "iterated l-drl",
            "diverging",
            "set inversion.rule to difference, since transposes are no inverses",
        ),
        ("iterated drl", "diverging", "set propagation to composite, since these decoders learn to invert all layers"),
        ("iterated with inverse slopes", "diverging", "set decoder.activation to transpose, since inverse slopes are"),
    ],
)
def test_remedies(name: str, problem: str, remedy: str) -> None:
    assert advise(BAD[problem], VARIANTS[name]).split(": ")[2].startswith(remedy)


def test_advice_for_what_is_good() -> None:
    layer, method = LayerInspection("2", 9, GOOD, 3.0, 31.0, 42.0, 30.0), tp.method("learned-inverse")
    said = (
        "residual 0.6, 0.1 after 20 more steps; its target points 31° away from back-propagation, 42° from Gauss-Newton"
    )
    assert advise(layer, method) == f"layer 2: fine: {said}"
    slow = replace(layer, inverse=replace(GOOD, contraction=1.3))
    assert "0.1 after 20 more steps although f∘g − id has norm 1.3 > 1; " in advise(slow, method)
    half = replace(layer, inverse=replace(GOOD, contraction=1.3, diverged=0.5, space="input"))
    damped = tp.method("krylov", inversion=tp.InputSpace(steps=4, alpha=0.25))
    assert "layer 2: id − 0.25 g∘f has norm 1.3 > 1 and iterating diverges for 50% of the samples" in advise(
        half, damped
    )
