"""The identities that the maths promises (METHOD, section 7), in float64, through the public interface."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import (
    DTYPE,
    INVERSE,
    LOSSES,
    NETWORKS,
    TRANSPOSE,
    backprop,
    gradients,
    invertible,
    parameters,
    rand,
    relative,
    targets,
)
from targetprop import diagnostics
from targetprop.decoders import difference_loss
from targetprop.decoders.layer import Inverse
from targetprop.decoders.maps import LinearDecoder
from targetprop.layers import record_layers
from targetprop.output_target import loss_gradient


def filled(model, loss, x: Tensor, y: Tensor, seed: int = 0, **parts) -> Tensor:
    """Take the gradient by target propagation, leaving ``.grad`` empty."""
    engine = tp.TargetPropagation(model, loss, example_input=x, method=tp.Method(**parts))
    torch.manual_seed(seed)
    engine.backward(x, y)
    found = gradients(model)
    for p in parameters(model):
        p.grad = None
    return found


# 1. With exact transposes and difference inversion, `.grad` is back-propagation's.


@pytest.mark.parametrize("network", NETWORKS)
def test_transposes_give_the_gradient_of_every_network(network: str) -> None:
    case, loss = NETWORKS[network], LOSSES["cross-entropy"]
    model, x, y = case.build(), case.batch(), loss.labels(5)
    found = filled(model, loss.loss, x, y, decoder=TRANSPOSE, cut=case.cut, output_target=tp.GradientStep(1e-3))
    assert relative(found, backprop(model, loss.loss, x, y)) < 1e-11


@pytest.mark.parametrize("name", LOSSES)
def test_transposes_give_the_gradient_of_every_loss(name: str) -> None:
    case, loss = NETWORKS["tanh"], LOSSES[name]
    model, x, y = case.build(), case.batch(), loss.labels(5)
    found = filled(model, loss.loss, x, y, decoder=TRANSPOSE, output_target=tp.GradientStep(1e-3))
    assert relative(found, backprop(model, loss.loss, x, y)) < 1e-11


@pytest.mark.parametrize("network", ["tanh", "batch norm in eval", "dropout", "sequences"])
def test_autograd_agrees_with_dense_jacobians(network: str) -> None:
    case, loss = NETWORKS[network], LOSSES["cross-entropy"]
    model, x, y = case.build(), case.batch(), loss.labels(5)
    torch.manual_seed(0)
    record = record_layers(model, x)
    dense = diagnostics.backprop_gradients(record, loss_gradient(record.output, y, loss.loss).output)
    assert relative(torch.cat(dense), backprop(model, loss.loss, x, y)) < 1e-12


class Curved(nn.Module):
    """``g(y) = Wᵀ (y − y³/3)``: curved, and at ``y = tanh(Wx + b)`` its Jacobian is ``J_fᵀ``."""

    def __init__(self, forward: nn.Linear) -> None:
        super().__init__()
        self.forward_weight = (forward.weight.detach(),)

    def forward(self, y: Tensor) -> Tensor:
        return (y - y**3 / 3) @ self.forward_weight[0]


def curved_error(beta: float) -> float:
    # The output layer is curved too, or its decoder would be exact.
    model = nn.Sequential(*NETWORKS["tanh"].build(), nn.Tanh())
    x, y = NETWORKS["tanh"].batch(), rand(5, 3, seed=3)
    decoders = {name: Curved(model[int(name)]) for name in "24"}
    method = tp.Method(decoder=tp.Fixed(), output_target=tp.GradientStep(beta))
    tp.TargetPropagation(model, nn.MSELoss(), example_input=x, method=method, decoders=decoders).backward(x, y)
    found = gradients(model)
    model.zero_grad()
    return relative(found, backprop(model, nn.MSELoss(), x, y))


def test_curved_decoders_with_the_right_jacobian_give_the_gradient_to_first_order_in_beta() -> None:
    errors = [curved_error(beta) for beta in (1e-2, 5e-3, 2.5e-3)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.02)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.01)
    assert 1e-8 < curved_error(1e-6) < 2e-6


# 2. Invertible layers: Gauss-Newton targets, and Gauss-Newton steps by the delta rule.


def target_changes(model: nn.Sequential, x: Tensor, y: Tensor, beta: float, inversion, decoder=INVERSE, **parts):
    """Return ``Δ_1 … Δ_{L-1}`` that the engine finds, and those that the inverse Jacobians predict."""
    method = tp.Method(decoder=decoder, inversion=inversion, output_target=tp.GradientStep(beta), **parts)
    engine = tp.TargetPropagation(model, nn.MSELoss(), example_input=x, method=method)
    record, found = targets(engine, x, lambda r: method.output_target(r.output, y, nn.MSELoss()).delta)
    predicted = [torch.linalg.solve(J, found.deltas[-1]) for J in diagnostics.output_jacobians(record)[:-1]]
    return found.deltas[:-1], predicted


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ELU, lambda: nn.LeakyReLU(0.5)])
def test_exact_inverses_give_gauss_newton_targets(activation) -> None:
    found, predicted = target_changes(
        invertible(activation, depth=4), rand(5, 3), rand(5, 3, seed=1), 1e-2, tp.Difference()
    )
    for a, b in zip(found, predicted, strict=True):
        assert relative(a, b) < 1e-11


ITERATED = {
    "input-space": dict(inversion=tp.InputSpace(steps=12, tolerance=1e-13)),
    "input-space, Anderson": dict(inversion=tp.InputSpace(steps=12, tolerance=1e-13, anderson=2)),
    "output-space": dict(inversion=tp.OutputSpace(steps=12, tolerance=1e-13)),
    "joint": dict(inversion=tp.InputSpace(steps=16, tolerance=1e-13), propagation="joint"),
    "composite": dict(inversion=tp.InputSpace(steps=12, tolerance=1e-13), propagation="composite"),
    "damped decoder": dict(inversion=tp.InputSpace(steps=40, tolerance=1e-13), decoder=tp.Exact(w=1.0, damping=0.01)),
}


@pytest.mark.parametrize("name", ITERATED)
def test_iterated_inverses_give_gauss_newton_targets_to_second_order(name: str) -> None:
    x, y = rand(5, 3), rand(5, 3, seed=1)
    errors = []
    for beta in (4e-3, 2e-3, 1e-3):
        found, predicted = target_changes(invertible(depth=3), x, y, beta, **ITERATED[name])
        errors.append(float(torch.cat(found).sub(torch.cat(predicted)).norm()))
    slopes = [errors[i] / errors[i + 1] for i in range(2)]
    assert slopes == [pytest.approx(4, rel=0.02)] * 2  # halving β divides the error by 2²
    assert errors[2] < 1e-2 * 1e-3


def delta_rule_step(model: nn.Sequential, x: Tensor, y: Tensor, beta: float = 1e-2) -> Tensor:
    """Return what SGD with learning rate β would add to the parameters."""
    update = tp.DeltaRule(pullback_damping=0.0)
    target = tp.GradientStep(beta)
    return -beta * filled(
        model, nn.MSELoss(reduction="sum"), x, y, decoder=INVERSE, update=update, output_target=target
    )


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ELU])
def test_delta_rule_on_one_sample_is_the_block_diagonal_gauss_newton_step(activation) -> None:
    model, x, y = invertible(activation), rand(1, 3), rand(1, 3, seed=1)
    record = record_layers(model, x)
    delta = -1e-2 * 2 * (record.output - y)
    dense = torch.cat(diagnostics.gauss_newton_steps(record, delta, sample=0))
    assert relative(delta_rule_step(model, x, y), dense) < 1e-10


def test_delta_rule_on_one_sample_agrees_with_curvlinops() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependency uses deprecated torch.jit
        curvlinops = pytest.importorskip("curvlinops")
        model, x, y = invertible(), rand(1, 3), rand(1, 3, seed=1)
        loss, beta = nn.MSELoss(reduction="sum"), 1e-2
        step, gradient = delta_rule_step(model, x, y, beta), backprop(model, loss, x, y)
        offset = 0
        for linear in (m for m in model if isinstance(m, nn.Linear)):
            block = list(linear.parameters())
            size = sum(p.numel() for p in block)
            operator = curvlinops.GGNLinearOperator(model, loss, block, [(x, y)], check_deterministic=False)
            G = operator @ torch.eye(size, dtype=DTYPE)
            # G = 2 JᵀJ and the gradient is Jᵀ∂C, so β J⁺(−∂C) = −2β G⁺ Jᵀ∂C.
            newton = -2 * beta * torch.linalg.pinv(G, rtol=1e-10, hermitian=True) @ gradient[offset : offset + size]
            assert relative(step[offset : offset + size], newton) < 1e-8
            offset += size


# 3. Affine maps: the error of the iteration in closed form.


def affine(rank: int = 4, width: int = 4, noise: float = 0.2) -> tuple[Tensor, Tensor]:
    """Return ``A`` of some rank and ``G`` near its pseudo-inverse."""
    A = rand(width, rank) @ rand(rank, width, seed=1) / width + (torch.eye(width, dtype=DTYPE) if rank == width else 0)
    return A, torch.linalg.pinv(A, rtol=1e-10) @ (
        torch.eye(width, dtype=DTYPE) + noise * rand(width, width, seed=2) / 3
    )


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_input_space_error_on_affine_maps_is_the_closed_form(alpha: float, steps: int) -> None:
    A, G = affine()
    a, b = rand(4, seed=5), rand(4, seed=6)
    solution, x0 = rand(6, 4, seed=7), rand(6, 4, seed=8)
    f, g = lambda x: x @ A.T + a, lambda y: y @ G.T + b
    rule = tp.InputSpace(steps=steps, alpha=alpha, tolerance=0.0)
    found = tp.invert(f, g, f(solution), x0, method=rule).x - solution
    expected = diagnostics.affine_error(A, G, alpha, steps, x0 - solution)
    assert (found - expected).abs().max() < 1e-13


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("steps", [0, 1, 6])
@pytest.mark.parametrize("differential", [True, False])
def test_output_space_error_on_affine_maps_is_the_closed_form(alpha: float, steps: int, differential: bool) -> None:
    A, G = affine()
    a, b = rand(4, seed=5), rand(4, seed=6)
    solution, x0 = rand(6, 4, seed=7), rand(6, 4, seed=8)
    f, g = lambda x: x @ A.T + a, lambda y: y @ G.T + b
    rule = tp.OutputSpace(steps=steps, alpha=alpha, tolerance=0.0, differential=differential)
    found = tp.invert(f, g, f(solution), x0, method=rule).x - solution
    u0, u_star = f(solution), (solution - (x0 - g(f(x0)) if differential else 0) - b) @ torch.linalg.inv(G).T
    # u errs by (I − αAG)ᵏ, and x = G u + constant.
    expected = diagnostics.affine_error(G, A, alpha, steps, u0 - u_star) @ G.T
    assert (found - expected).abs().max() < 1e-13


def test_null_space_of_the_forward_map_stays_where_it_started() -> None:
    A, G = affine(rank=2, noise=0.0)
    solution, x0 = rand(6, 4, seed=7), rand(6, 4, seed=8)
    x = tp.invert(lambda x: x @ A.T, lambda y: y @ G.T, solution @ A.T, x0).x
    null = torch.eye(4, dtype=DTYPE) - torch.linalg.pinv(A, rtol=1e-10) @ A
    assert ((x - x0) @ null).abs().max() < 1e-13
    assert (x @ A.T - solution @ A.T).abs().max() < 1e-13


# 4. One input-space step is difference; zero output-space steps are direct, or difference.

F, G_ROUGH = (lambda x: (1.2 * x + 0.1).tanh()), (lambda y: 0.8 * y.clamp(-0.9, 0.9).atanh() + 0.05)
SAME = {
    "input-space": (tp.InputSpace(steps=1), tp.Difference()),
    "output-space": (tp.OutputSpace(steps=0, differential=False), tp.Direct()),
    "differential output-space": (tp.OutputSpace(steps=0), tp.Difference()),
}


@pytest.mark.parametrize("name", SAME)
def test_shortest_iterations_are_the_simple_rules(name: str) -> None:
    rule, simple = SAME[name]
    x0 = 0.5 * rand(5, 4)
    t = F(x0 + 0.05 * rand(5, 4, seed=1))
    a, b = (tp.invert(F, G_ROUGH, t, x0, method=m) for m in (rule, simple))
    assert torch.equal(a.x, b.x)
    assert a.forward_residual is not None and torch.equal(a.forward_residual, b.forward_residual)


# 5. The minimiser of ℓ(w, λ) is Jᵀ(wJJᵀ + λI)⁻¹.

MINIMA = [(1.0, 0.0, 3, 5), (1.0, 0.3, 3, 5), (1.0, 0.3, 5, 3), (0.0, 1.0, 3, 5), (0.5, 2.0, 4, 4), (0.0, 0.5, 5, 3)]


@pytest.mark.parametrize(("w", "damping", "outputs", "inputs"), MINIMA)
def test_difference_loss_is_least_at_the_closed_form(w: float, damping: float, outputs: int, inputs: int) -> None:
    J, s = rand(outputs, inputs), 0.3
    n = 60  # a multiple of both widths: the second moments are exactly white
    eps = s * (inputs**0.5) * torch.eye(inputs, dtype=DTYPE).repeat(n // inputs, 1)
    eta = s * (outputs**0.5) * torch.eye(outputs, dtype=DTYPE).repeat(n // outputs, 1)
    y0 = rand(n, outputs, seed=4)

    def loss(V: Tensor) -> Tensor:
        g = Inverse(lambda y: y @ V.T, lambda y, change: change @ V.T)
        return difference_loss(g, eps @ J.T, y0, eps, eta, w, damping, s)

    best = diagnostics.damped_inverse(J, w, damping)
    gradient = torch.func.grad(loss)
    assert gradient(best).abs().max() < 1e-12
    assert torch.linalg.eigvalsh(torch.func.hessian(loss)(best).view(best.numel(), -1)).min() > 0
    start = torch.zeros_like(best)  # the loss is quadratic: one Newton step from anywhere ends there
    hessian = torch.func.hessian(loss)(start).view(best.numel(), -1)
    step = torch.linalg.solve(hessian, gradient(start).flatten()).view_as(best)
    assert relative(start - step, best) < 1e-11


@pytest.mark.parametrize(("w", "damping", "relative_damping"), [(1.0, 0.5, False), (0.0, 1.0, False), (1.0, 0.5, True)])
@pytest.mark.parametrize("decoder", ["affine", "own module"])
def test_training_on_noise_finds_the_closed_form(
    w: float, damping: float, relative_damping: bool, decoder: str
) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)).to(DTYPE)
    net[1].weight.data = 0.7 * rand(3, 4, seed=3)
    x, W = 0.1 * rand(512, 3), net[1].weight.detach()
    objective = tp.DifferenceReconstruction(w=w, damping=damping, relative=relative_damping, lr=0.05)
    custom = {} if decoder == "affine" else {"1": nn.Linear(3, 4, bias=False).to(DTYPE)}  # no closed-form penalty
    engine = tp.TargetPropagation(
        net, nn.MSELoss(), example_input=x, method=tp.Method(decoder=objective), decoders=custom, seed=1
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(engine.decoder_optimizer, 0.98)
    for _ in range(250):
        engine.train_decoders(x)
        schedule.step()
    (learned,) = (m for m in engine.bank.modules() if isinstance(m, nn.Linear | LinearDecoder))
    scale = float((W @ W.T).diagonal().mean()) if relative_damping else 1.0
    assert relative(learned.weight, diagnostics.damped_inverse(W, w, damping * scale)) < 0.02


# 6. The error shrinks by no more than the measured Lipschitz constant at each step.


def curved_maps() -> tuple:
    A = torch.eye(4, dtype=DTYPE) + 0.2 * rand(4, 4)
    G = torch.linalg.inv(A) @ (torch.eye(4, dtype=DTYPE) + 0.15 * rand(4, 4, seed=1))
    return (lambda x: (x @ A.T) + 0.1 * (x @ A.T).sin()), (lambda y: y @ G.T)


def test_error_ratio_never_exceeds_the_measured_lipschitz_constant() -> None:
    f, g = curved_maps()
    solution, x0 = rand(8, 4, seed=2), rand(8, 4, seed=3)
    iterates = [tp.invert(f, g, f(solution), x0, method=tp.InputSpace(steps=k, tolerance=0.0)).x for k in range(1, 9)]
    iterates = [x0, *iterates]
    ratios = diagnostics.contraction(iterates, solution)
    constants = torch.stack([diagnostics.lipschitz(f, g, x, solution) for x in iterates])
    assert (constants < 0.95).all()
    assert (ratios <= constants[:-1] * (1 + 1e-9)).all()
    assert (ratios > 0.02).all()  # the bound is not met for a trivial reason
    rho = constants.amax(0)  # one ball that holds all iterates
    for k, x in enumerate(iterates[1:], start=1):
        error = (x - solution).norm(dim=1)
        assert (error <= rho**k * (x0 - solution).norm(dim=1) * (1 + 1e-9)).all()
        assert (error <= rho / (1 - rho) * (x - iterates[k - 1]).norm(dim=1) * (1 + 1e-9)).all()


# 7. Scalar chain: the influence-normalised change is the gradient's.


def test_normalised_change_of_a_scalar_chain_is_the_gradients() -> None:
    model = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(1, 1), nn.Tanh())]).to(DTYPE)
    for i, linear in enumerate(m for m in model if isinstance(m, nn.Linear)):
        linear.weight.data.fill_([2.0, 0.3, -1.5, 0.7][i])
    x, y = rand(6, 1), rand(6, 1, seed=1)
    expected = backprop(model, nn.MSELoss(), x, y)
    parts = dict(decoder=INVERSE, output_target=tp.GradientStep(1e-3))
    normalised = filled(model, nn.MSELoss(), x, y, influence=tp.Influence(normalise=True), **parts)
    plain = filled(model, nn.MSELoss(), x, y, **parts)
    assert relative(normalised, expected) < 1e-10
    assert relative(plain, expected) > 0.5


def test_normalisation_by_hand() -> None:
    delta, out = rand(3, 2, 2), rand(3, 4, seed=1)
    delta[1] = 0
    found = tp.normalise(delta, out)
    assert (found[1] == 0).all()
    expected = delta[0] * out[0].square().sum() / delta[0].square().sum()
    assert torch.allclose(found[0], expected, rtol=1e-13, atol=0)
    limited = tp.normalise(delta * 1e-3, out, limit=2.0)
    assert torch.allclose(limited.flatten(1).norm(dim=1)[[0, 2]], 2 * out.norm(dim=1)[[0, 2]], rtol=1e-13)
    with pytest.raises(ValueError, match="influence limit must be > 0; got 0.0"):
        tp.Influence(limit=0.0)
