"""The rivals against oracles: K-FAC's factors and step, LocoProp's local step, the labels that losses draw."""

from copy import deepcopy

import pytest
import torch
from curvlinops import GGNLinearOperator, KFACLinearOperator
from torch import Tensor, nn
from torch.testing import assert_close

from cases import DTYPE, rand
from targetprop.bench.competitors import COMPETITORS
from targetprop.bench.competitors.kfac import Factors, Kfac, KfacStepper
from targetprop.bench.competitors.kfac_adaptive import AdaptiveKfac, AdaptiveKfacStepper
from targetprop.bench.competitors.locoprop import LocoProp
from targetprop.bench.losses import HalfSquaredError, SampledLoss, SigmoidCrossEntropy, SoftmaxCrossEntropy
from targetprop.bench.problems import DigitsAutoencoder

LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 0])
LOSSES = {
    "sigmoid": (SigmoidCrossEntropy(), rand(7, 3, seed=4).sigmoid()),
    "softmax": (SoftmaxCrossEntropy(), LABELS),
    "squared": (HalfSquaredError(), rand(7, 3, seed=4)),
}


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Linear(4, 3)).to(DTYPE)


def weights(model: nn.Sequential) -> list[Tensor]:
    """Copy ``[W b]`` of every map."""
    maps = [m for m in model if isinstance(m, nn.Linear)]
    return [torch.cat([m.weight, m.bias[:, None]], dim=1).detach().clone() for m in maps]


def gradients(model: nn.Sequential, loss: SampledLoss, x: Tensor, y: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss(model(x), y), list(model.parameters()))
    return [torch.cat([w, b[:, None]], dim=1) for w, b in zip(found[::2], found[1::2], strict=True)]


def test_kfac_factors_give_the_fisher_of_curvlinops() -> None:
    model, x = network(), rand(7, 4)
    settings = Kfac(lr=0.0, decay=0.0, fisher="empirical")
    stepper = settings.start(model, SoftmaxCrossEntropy(), x, 0)
    assert isinstance(stepper, KfacStepper)
    stepper.step(x, LABELS)
    dense = torch.block_diag(*(torch.kron(f.g, f.a) for f in stepper.factors))
    oracle = KFACLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, LABELS)], fisher_type="empirical",
        separate_weight_and_bias=False, check_deterministic=False,
    )  # fmt: skip
    # curvlinops orders parameters weight by bias, ours are the rows of [W b].
    order, start = [], 0
    for m in model:
        if isinstance(m, nn.Linear):
            k, d = m.weight.shape
            order += [i for r in range(k) for i in [*range(start + r * d, start + (r + 1) * d), start + k * d + r]]
            start += k * (d + 1)
    theirs = oracle @ torch.eye(start, dtype=DTYPE)
    assert isinstance(theirs, Tensor)
    theirs = theirs[order][:, order]
    assert_close(dense, theirs)


@pytest.mark.parametrize("clip", [1e9, 1e-3])
def test_kfac_step_solves_with_damped_kronecker_factors(clip: float) -> None:
    model, x, y = network(), rand(7, 4), LABELS
    settings = Kfac(lr=0.3, damping=0.2, clip=clip, momentum=0.0, fisher="empirical")
    before, grads = weights(model), gradients(model, SoftmaxCrossEntropy(), x, y)
    stepper = settings.start(model, SoftmaxCrossEntropy(), x, 0)
    assert isinstance(stepper, KfacStepper)
    stepper.step(x, y)
    changes = []
    for factors, g in zip(stepper.factors, grads, strict=True):
        a, s = factors.a, factors.g
        pi = ((a.trace() / len(a)) / (s.trace() / len(s))).sqrt()
        damped = torch.kron(
            s + (0.2**0.5 / pi) * torch.eye(len(s), dtype=DTYPE), a + pi * 0.2**0.5 * torch.eye(len(a), dtype=DTYPE)
        )
        changes.append(torch.linalg.solve(damped, g.flatten()).reshape(g.shape))
    predicted = sum((c * g).sum() for c, g in zip(changes, grads, strict=True))
    bound = min(1.0, float((clip / (0.3**2 * predicted)) ** 0.5))
    assert (bound < 1) == (clip < 1)
    for old, new, change in zip(before, weights(model), changes, strict=True):
        assert_close(new, old - 0.3 * bound * change)


def test_kfac_averages_with_bias_correction_and_factorises_every_few_steps() -> None:
    factors = Factors(decay=0.5, every=2)
    a, g = [rand(9, 2, seed=i) for i in range(2)], [rand(9, 2, seed=5 + i) for i in range(2)]
    factors.observe(a[0], g[0])
    first = factors.solve(torch.eye(2, dtype=DTYPE), damping=0.0)
    factors.observe(a[1], g[1])
    assert_close(factors.a, (a[0].T @ a[0] + 2 * a[1].T @ a[1]) / 27)
    assert_close(factors.solve(torch.eye(2, dtype=DTYPE), damping=0.0), first)
    assert_close(first, torch.linalg.inv(g[0].T @ g[0] / 9) @ torch.linalg.inv(a[0].T @ a[0] / 9))


def test_adaptive_kfac_steps_to_the_minimum_of_the_quadratic_model_and_adapts_its_damping() -> None:
    model, x, loss = network(), rand(7, 4), SoftmaxCrossEntropy()
    stepper = AdaptiveKfac(lr=1.0, damping=0.3, every=2).start(model, loss, x, 0)
    assert isinstance(stepper, AdaptiveKfacStepper)
    steps, damping = [], 0.3
    for _ in range(2):
        old, grads = weights(model), gradients(model, loss, x, LABELS)
        still = deepcopy(model)
        ggn = GGNLinearOperator(
            still, nn.CrossEntropyLoss(), list(still.parameters()), [(x, LABELS)], check_deterministic=False
        )  # fmt: skip
        value = float(loss(model(x), LABELS).detach())
        stepper.step(x, LABELS)
        steps.append([new - o for o, new in zip(old, weights(model), strict=True)])
        # At the minimum along the step the model's slope is 0: ⟨∇, δ⟩ = −δᵀ (F + λ I) δ.
        flat = torch.cat([p.flatten() for s in steps[-1] for p in (s[:, :-1], s[:, -1])])
        slope = sum(float((g * s).sum()) for g, s in zip(grads, steps[-1], strict=True))
        curved = float(flat @ (ggn @ flat) + damping * flat @ flat)
        assert slope < 0 and slope == pytest.approx(-curved, rel=1e-9)
    ratio = (float(loss(model(x), LABELS).detach()) - value) / (slope + curved / 2)
    expected = 0.3 * (0.95**2 if ratio > 0.75 else 1 if ratio > 0.25 else 0.95**-2)
    assert stepper.damping == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
def test_drawn_labels_have_the_fisher_that_is_the_hessian(name: str) -> None:
    loss, y = LOSSES[name]
    z, n = rand(1, 3, seed=9), 40000
    many = z.repeat(n, 1).requires_grad_()
    drawn = loss.draw(many.detach(), torch.Generator().manual_seed(0))
    g = n * torch.autograd.grad(loss(many, drawn), many)[0]
    hessian = torch.autograd.functional.hessian(lambda out: loss(out, y[:1]), z).reshape(3, 3)
    assert_close(g.T @ g / n, hessian, atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", ["squared", "matching"])
def test_first_local_step_of_locoprop_is_a_gradient_step(kind: str) -> None:
    model, x = network(), rand(7, 4)
    before, grads = weights(model), gradients(model, SoftmaxCrossEntropy(), x, LABELS)
    settings = LocoProp(lr=0.5, gamma=0.4, local_steps=1, kind=kind, optimizer="sgd")  # type: ignore[arg-type]
    settings.start(model, SoftmaxCrossEntropy(), x, 0).step(x, LABELS)
    for old, new, g in zip(before, weights(model), grads, strict=True):
        assert_close(new, old - 0.5 * 0.4 * g)


@pytest.mark.parametrize("kind", ["squared", "matching"])
def test_second_local_step_of_locoprop_descends_the_local_loss(kind: str) -> None:
    model, x, loss = network(), rand(7, 4), SoftmaxCrossEntropy()
    w, g = weights(model)[0], gradients(model, loss, x, LABELS)[0]
    a = torch.cat([x, torch.ones(7, 1, dtype=DTYPE)], dim=1)
    z = (a @ w.T).requires_grad_()
    per_sample = 7 * torch.autograd.grad(loss(model[1:](z), LABELS), z)[0]
    seen = torch.tanh if kind == "matching" else (lambda v: v)
    once = w - 0.5 * 0.4 * g
    missed = seen(a @ once.T) - seen(z.detach()) + 0.4 * per_sample
    settings = LocoProp(lr=0.5, gamma=0.4, local_steps=2, kind=kind, optimizer="sgd")  # type: ignore[arg-type]
    settings.start(model, loss, x, 0).step(x, LABELS)
    assert_close(weights(model)[0], once - 0.25 * missed.T @ a / 7)


@pytest.mark.parametrize("name", COMPETITORS)
def test_every_competitor_lowers_the_loss_of_a_small_autoencoder(name: str) -> None:
    problem = DigitsAutoencoder()
    task, model = problem.load(), problem.network(0)
    stepper = COMPETITORS[name].start(model, task.loss, task.x[:2], 0)
    schedules = [problem.schedule.make(optimizer, 40) for optimizer in stepper.optimizers]
    batches, losses = task.batches(problem.batch, 0), []
    for _ in range(40):
        losses.append(float(stepper.step(*next(batches))))
        for schedule in schedules:
            schedule.step()
    owned = [p for o in stepper.optimizers for group in o.param_groups for p in group["params"]]
    assert {id(p) for p in owned} == {id(p) for p in model.parameters()} and len(owned) == len({*map(id, owned)})
    assert losses[-1] < 0.97 * losses[0]


def test_every_competitor_searches_as_many_settings() -> None:
    assert {len(competitor.space) for competitor in COMPETITORS.values()} == {3}
    for competitor in COMPETITORS.values():
        for setting, span in competitor.space.items():
            value = getattr(competitor, setting)
            assert (1 - span.encode(value) if span.complement else span.encode(value)) == pytest.approx(value)


def test_muon_orthogonalises_in_full_precision_where_bfloat16_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    model = nn.Sequential(nn.Linear(6, 4, bias=False))
    before, g = model[0].weight.detach().clone(), torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    (muon, _) = COMPETITORS["muon"].optimizers(nn.Sequential(model[0], nn.Linear(4, 4)))
    model[0].weight.grad = g.clone()
    muon.step()
    u, s, v = torch.linalg.svd(g.double(), full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    change = 1e-3 * 0.2 * 6**0.5 * (u * s) @ v
    assert_close((before - model[0].weight).detach().double(), change, rtol=1e-3, atol=1e-6)
