"""Decoders by pullback: against dense Jacobians, trained beside, and refused where they would read weights."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import targetprop as tp
from cases import DTYPE, gradients, rand, relative
from targetprop import diagnostics
from targetprop.decoders.registry import _BUILDERS
from targetprop.layers.forward_pass import run_forward
from targetprop.layers.replay import _RULES
from targetprop.testing import DecoderContract


@tp.register_pullback
class Core(nn.Module):
    """Attention of one head, between its linear maps."""

    def forward(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.chunk(3, dim=-1)
        return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v


@tp.register_pullback
class Fused(Core):
    """The same by PyTorch's kernel, which has no second derivative of its own."""

    def forward(self, qkv: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))


@tp.register_pullback
class Fold(nn.Module):
    """Shrinks its input and depends on a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.linspace(-1, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, :3] + self.shift.to(x)) * x[:, 3:6].sin()


@pytest.fixture
def fresh():
    """Forget what a test registers."""
    before = dict(_BUILDERS), dict(_RULES)
    yield
    for registry, kept in zip((_BUILDERS, _RULES), before, strict=True):
        registry.clear()
        registry.update(kept)


def inverse(modules: list[nn.Module], x: Tensor, style: str = "transpose"):
    """Bind the decoder of a layer that consists of modules, below which stands one that only makes it the second."""
    method = tp.Method(decoder=tp.Denoising(activation=style))
    layers = [nn.Linear(x.shape[-1], x.shape[-1]).to(DTYPE), nn.Sequential(*modules).to(DTYPE)]
    engine = tp.TargetPropagation(layers, nn.MSELoss(), example_input=x, method=method, seed=0)
    record = run_forward(engine.network, x)
    return engine, record.layers[1], engine.bank.inverse(record.layers[1])


@pytest.mark.parametrize("style", ["identity", "inverse", "transpose"])
@pytest.mark.parametrize(("module", "shape"), [(Core(), (4, 6)), (Fused(), (4, 6)), (Fold(), (6,))])
def test_the_linear_part_is_the_transposed_jacobian_in_every_style(module: nn.Module, shape, style: str) -> None:
    _, layer, g = inverse([module], rand(5, *shape), style)
    change = rand(*layer.h.shape, seed=2)
    J = diagnostics.layer_jacobian(layer)
    wanted = (J.mT @ change.flatten(1).unsqueeze(2)).view(layer.x.shape)
    assert relative(g.difference(layer.h + 1, change), wanted) < 1e-13
    assert relative(g(layer.h + change), layer.x + wanted) < 1e-13, "anchored at the forward pass"
    assert relative(g(layer.h), layer.x) == 0


@pytest.mark.parametrize("style", ["identity", "inverse", "transpose"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: Core(), (4, 6)),
        (lambda: nn.Sequential(nn.Linear(4, 9), Core(), nn.Linear(3, 4)), (5, 4)),
        (lambda: tp.Residual(nn.Linear(4, 12), Core(), nn.Linear(4, 4), correction=True), (5, 4)),
        (lambda: tp.Residual(Fold(), shortcut=Fold(), correction=True), (6,)),
    ],
)
def test_pullbacks_keep_the_contract_of_decoders(style, make, shape) -> None:
    class Contract(DecoderContract):
        def module(self) -> nn.Module:
            return make()

        def example(self) -> Tensor:
            return rand(3, *shape)

    Contract.style = style
    contract = Contract()
    for name in (n for n in dir(contract) if n.startswith("test_")):
        getattr(contract, name)()


@pytest.mark.parametrize("core", [Core, Fused])
def test_maps_on_both_sides_of_a_pullback_are_trained_through_it(core: type[nn.Module]) -> None:
    modules = [nn.Linear(4, 9), core(), nn.Linear(3, 5)]
    engine, layer, g = inverse(modules, rand(6, 3, 4))
    below, above = (part.map for part in engine.bank.decoder(layer.name).parts if hasattr(part, "map"))
    c = rand(6, 3, 4, seed=4)
    (c * g.difference(layer.h, rand(6, 3, 5, seed=3))).sum().backward()
    found = above.weight.grad
    pushed = [torch.autograd.functional.jacobian(Core(), z) for z in modules[0](layer.x).detach()]
    pulled = torch.stack([(J * v).sum((2, 3)) for J, v in zip(pushed, (c @ below.weight).detach(), strict=True)])
    assert relative(found, torch.einsum("npi,npo->io", pulled, rand(6, 3, 5, seed=3))) < 1e-12
    assert below.weight.grad is not None and below.weight.grad.any()


def test_dropout_beside_a_pullback_and_the_first_samples_of_a_batch() -> None:
    _, layer, g = inverse([Fold(), nn.Dropout(0.5)], rand(8, 6))
    few = layer.head(3)
    assert torch.equal(few.f(few.x), layer.h[:3])
    change = rand(8, 3, seed=5)
    J = diagnostics.layer_jacobian(layer)
    assert relative(g.difference(layer.h, change), (J.mT @ change.unsqueeze(2)).squeeze(2)) < 1e-13


def test_half_precision_goes_through() -> None:
    x, y = rand(4, 5, 4).float(), torch.arange(4) % 2
    model = nn.Sequential(
        nn.Linear(4, 4),
        tp.Residual(nn.Linear(4, 12), Core(), nn.Linear(4, 4), correction=True),
        nn.Flatten(),
        nn.Linear(20, 2),
    )
    engine = tp.TargetPropagation(model, nn.CrossEntropyLoss(), example_input=x, method="dtp", seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(engine.backward(x, y).loss)
    assert torch.isfinite(gradients(model)).all() and gradients(model[1]).any()


# Refusals


def build(module: nn.Module, width: int = 6) -> tp.TargetPropagation:
    layers = [nn.Linear(width, width), nn.Sequential(nn.Linear(width, width), module)]
    return tp.TargetPropagation(layers, nn.MSELoss(), example_input=rand(2, width).float(), method="dtp")


class Gain(Fold):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))


class Noisy(Fold):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)


def test_a_module_with_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Gain .* has parameters, which its pullback would read; move them"):
        build(Gain())


def test_a_module_that_hides_dropout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Noisy .* holds Dropout, whose masks or statistics cannot be repeated"):
        build(Noisy())


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("by_value", [False, True])
def test_a_black_box_has_no_pullback(fresh, inside: bool, by_value: bool) -> None:
    @tp.register_pullback
    class Sign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(x.detach().numpy() ** 3) if by_value else x.sign()

    module = tp.Residual(Sign(), correction=True) if inside else Sign()
    with pytest.raises(ValueError, match=r"layer 1: Sign .* has no pullback: autograd gives it no derivative"):
        build(module)


def test_a_class_is_registered_once_and_a_refusal_registers_nothing(fresh) -> None:
    class Twice(nn.Module):
        pass

    tp.register_decoder(Twice)(lambda module, x, y, style: None)
    with pytest.raises(ValueError, match="Twice has a decoder already"):
        tp.register_pullback(Twice)
    assert Twice not in _RULES
    with pytest.raises(ValueError, match="Core has a decoder already"):
        tp.register_pullback(Core)

    class Replayed(nn.Module):
        pass

    tp.register_replay(Replayed, lambda module, x: (x, tp.ReplayState()), lambda module, x, side: x)
    with pytest.raises(ValueError, match="Replayed has a replay rule already"):
        tp.register_pullback(Replayed)
    assert Replayed not in _BUILDERS
