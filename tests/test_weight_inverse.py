"""Weight inverses are damped inverses of maps, and with them ``J_g J_f`` has eigenvalues in [0, 1)."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import DTYPE, rand, relative
from one_layer import CONVS, OneLayer, bind
from targetprop import diagnostics

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def learned(module: nn.Module, x: Tensor, damping: float = 0.7) -> OneLayer:
    """The layer after its mirror has become its weight."""
    found = bind(module, x, tp.WeightInverse(damping=damping, warmup=60, share=100.0, activity=0.0))
    for _ in range(12):
        found.engine.train_decoders(x)
    return found


def jacobians(found: OneLayer) -> tuple[Tensor, Tensor]:
    """``J_f`` and ``J_g`` of the first sample, by going along every axis."""
    layer, g = found.layer, found.g
    n, wide, high = len(layer.x), layer.x[0].numel(), layer.h[0].numel()

    def along(axes: Tensor, shape: torch.Size, apply) -> Tensor:
        return torch.stack([apply(axis.expand(n, -1).reshape(shape))[0].flatten() for axis in axes], dim=1)

    jf = torch.func.jacrev(lambda v: layer.f(torch.cat([v[None], layer.x[1:]]))[0])(layer.x[0]).reshape(high, wide)
    jg = along(torch.eye(high, dtype=DTYPE), layer.h.shape, lambda change: g.difference(layer.h, change))
    return jf, jg


@pytest.mark.parametrize("damping", [0.05, 3.0])
@pytest.mark.parametrize(("inputs", "outputs"), [(7, 4), (4, 7), (5, 5)])
def test_a_map_gets_the_inverse_that_rebuilds_noisy_answers_best(inputs: int, outputs: int, damping: float) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs)
    W = linear.to(DTYPE).weight.detach()
    found = learned(linear, rand(6, inputs), damping)
    _, V = jacobians(found)
    strength = damping * float(W.square().sum()) / min(inputs, outputs)
    assert relative(V, diagnostics.damped_inverse(W, 1.0, strength)) < 1e-10

    def error(V: Tensor) -> Tensor:
        """``E ‖ε − V (W ε + η)‖²``."""
        return (torch.eye(inputs, dtype=DTYPE) - V @ W).square().sum() + strength * V.square().sum()

    assert torch.func.grad(error)(V).norm() < 1e-9


@pytest.mark.parametrize("case", CONVS)
def test_a_convolution_gets_that_of_its_patches_over_their_overlap(case: str) -> None:
    make, shape = CONVS[case]
    torch.manual_seed(0)
    jf, jg = jacobians(learned(make(), rand(2, *shape)))
    eigenvalues = torch.linalg.eigvals(jg @ jf)
    assert eigenvalues.imag.abs().max() < 1e-6
    assert -1e-9 < eigenvalues.real.min() and 0.01 < eigenvalues.real.max() < 1


class Two(nn.Module):
    """Two maps in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 9), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


BLOCKS = {
    "tanh": (lambda: nn.Sequential(nn.Linear(6, 6), nn.Tanh()), (6,)),
    "tanh before": (lambda: nn.Sequential(nn.Tanh(), nn.Linear(6, 4)), (6,)),
    "relu": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU()), (6,)),
    "two maps": (Two, (6,)),
    "max pool": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)), (2, 4, 4)),
    "mean pool": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)), (2, 4, 4)),
}


@pytest.mark.parametrize("case", BLOCKS)
@pytest.mark.parametrize("gain", [0.3, 20.0])
def test_the_paper_s_premise_holds_whatever_the_layer_has_learned(case: str, gain: float) -> None:
    make, shape = BLOCKS[case]
    torch.manual_seed(0)
    module = make()
    for p in module.parameters():
        p.data.mul_(gain)
    jf, jg = jacobians(learned(module, rand(2, *shape), damping=1.0))
    for product in (jg @ jf, jf @ jg):
        eigenvalues = torch.linalg.eigvals(product)
        assert eigenvalues.imag.abs().max() < 1e-6
        assert -1e-9 < eigenvalues.real.min() and eigenvalues.real.max() < 1
    if case in ("tanh", "relu"):  # one map, then slopes: J_f J_g is symmetric
        assert torch.linalg.matrix_norm(torch.eye(len(jf), dtype=DTYPE) - jf @ jg, ord=2) <= 1 + 1e-9


def test_branches_add_up_so_that_nothing_is_promised_of_residual_blocks() -> None:
    torch.manual_seed(0)
    jf, jg = jacobians(learned(tp.Residual(nn.Linear(6, 6)), rand(4, 6), damping=3.0))
    assert torch.linalg.eigvals(jg @ jf).real.max() > 2


@pytest.mark.parametrize("method", ["iterated", "krylov"])
def test_inspection_differentiates_the_decoder_as_it_is(method: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)).to(DTYPE)
    x, y = rand(1, 6), rand(1, 3)
    engine = tp.TargetPropagation(net, nn.MSELoss(), example_input=x, method=method, seed=0)
    engine.train_decoders(x)
    record, inspected = engine.record(x), diagnostics.inspect_targets(engine, x, y)
    for number, measured in enumerate(inspected.layers[1:], start=1):
        jf, jg = jacobians(OneLayer(engine, replace(record, layers=record.layers[number - 1 :])))
        expected = torch.linalg.matrix_norm(torch.eye(len(jf), dtype=DTYPE) - jf @ jg, ord=2)
        assert measured.inverse.contraction_max == pytest.approx(float(expected.detach()), rel=2e-3)


def test_it_keeps_what_it_learned_in_its_state() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(DTYPE)
    x, y = rand(8, 6), rand(8, 3)
    engine, other = (
        tp.TargetPropagation(net, nn.MSELoss(), example_input=x, method="iterated", seed=s) for s in (0, 1)
    )
    engine.backward(x, y)
    other.load_state_dict(engine.state_dict())
    grads = []
    for made in (engine, other):
        net.zero_grad()
        made.backward(x, y)
        grads.append([p.grad.clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
