"""Models as people write them: exact gradients with exact mirrors, no weight read on the way down, honest checks."""

import gc
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import targetprop as tp
from targetprop.decoders.proposal import Proposal
from targetprop.layers.inputs import call
from zoo import CASES, Case, transformers_cases

FLOAT32_INSIDE = {"hf_gpt2", "hf_llama", "hf_t5"}  # they cast to float32 whatever they are given


@cache
def cases() -> dict[str, Case]:
    return {case.name: case for case in (*CASES, *transformers_cases())}


NAMES = [case.name for case in CASES] + [
    "hf_gpt2", "hf_gpt2_logits", "hf_bert", "hf_vit", "hf_resnet", "hf_llama", "hf_t5",
]  # fmt: skip


def double(t: Any) -> Any:
    return t.double() if isinstance(t, Tensor) and t.is_floating_point() else t


@dataclass(frozen=True)
class Still(tp.WeightMirror):
    """Mirrors that do not learn."""

    def propose(self, *args: Any) -> Proposal:
        return Proposal()


def changing(model: nn.Module) -> tp.WeightMirror:
    """Change every parameter where mirrors would learn, between the forward pass and what goes down."""

    class Changing(Still):
        def propose(self, *args: Any) -> Proposal:
            for p in model.parameters():
                p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())).to(p))
            return Proposal()

    return Changing()


def made(name: str) -> tuple[nn.Module, Any, Any]:
    case = cases()[name]
    torch.manual_seed(0)
    return case.make().double().train(), tree_map(double, case.inputs()), case.labels()


def engine_with_exact_mirrors(name: str, model: nn.Module, x: Any, *, changed: bool = False) -> tp.TargetPropagation:
    method = tp.method("l-drl", decoder=changing(model) if changed else Still())
    engine = tp.TargetPropagation(model, cases()[name].loss, example_input=x, method=method, seed=0)
    before, random = deepcopy(model.state_dict()), torch.get_rng_state()
    for use in engine.record(x).uses():
        mirror = engine.bank.mirror(use.site.key, use.base)
        assert mirror is not None
        mirror.copy_(use.base.detach())
    model.load_state_dict(before)
    torch.set_rng_state(random)
    return engine


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.to_dense() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    yield


@pytest.mark.parametrize("name", NAMES)
def test_exact_mirrors_give_the_gradients_of_backpropagation(name: str) -> None:
    model, x, y = made(name)
    reference = deepcopy(model)
    torch.manual_seed(1)
    cases()[name].loss(call(reference, x), y).backward()
    engine = engine_with_exact_mirrors(name, model, x)
    torch.manual_seed(1)
    report = engine.backward(x, y)
    assert len(engine.network) >= 1 and report.skipped is None
    expected, got = gradients(reference), gradients(model)
    assert got.keys() == expected.keys()
    size = torch.stack([g.norm() for g in expected.values()]).norm()
    tolerance = 1e-7 if name in FLOAT32_INSIDE else 1e-9
    for key, gradient in expected.items():
        assert float((got[key] - gradient).norm()) <= tolerance * float(size), key
    for buffer, other in zip(model.buffers(), reference.buffers(), strict=True):  # moved once, as in one ordinary pass
        torch.testing.assert_close(buffer, other)


@pytest.mark.parametrize("name", NAMES)
def test_no_weight_is_read_between_the_forward_pass_and_the_gradient(name: str) -> None:
    found = []
    for changed in (False, True):
        model, x, y = made(name)
        engine = engine_with_exact_mirrors(name, model, x, changed=changed)
        torch.manual_seed(1)
        engine.backward(x, y)
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        assert torch.equal(gradient, found[1][key]), key


@pytest.mark.parametrize("method", ["l-drl", "iterated", "krylov", "least-squares"])
@pytest.mark.parametrize("name", ["cnn_tutorial", "resnet", "gpt_fused", "lstm_cell", "unet", "weight_norm", "hf_bert"])
def test_check_and_engine_agree_and_every_parameter_is_trained(name: str, method: str) -> None:
    case = cases()[name]
    torch.manual_seed(0)
    model, x, y = case.make(), case.inputs(), case.labels()
    before = deepcopy(model.state_dict())
    found = tp.check(model, x, method)
    assert found.supported, found.refusal
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    engine = tp.TargetPropagation(model, case.loss, example_input=x, method=method, seed=0)
    assert engine.backward(x, y).skipped is None
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet", ["conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "layer4.0",
                    "layer4.1", "fc"]),
        ("vit", ["patch_embed", "blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp", "head"]),
        ("rnn_own_cell", ["cell.i2h", "cell", "cell@2", "cell@3", "cell@4", "cell@5", "cell@6", "readout"]),
    ],
)  # fmt: skip
def test_layers_are_found_and_named_after_their_modules(name: str, layers: list[str]) -> None:
    case = cases()[name]
    assert [layer.name for layer in tp.check(case.make(), case.inputs(), "l-drl").layers] == layers


def test_a_layer_is_repeated_as_it_ran() -> None:
    """f_l(h_{l-1}) is h_l again, with the same dropout masks and batch statistics."""
    for name in ("vit", "resnet", "convnext", "own_dropout", "gru_cell", "hf_gpt2_logits"):
        model, x, _ = made(name)
        engine = engine_with_exact_mirrors(name, model, x)
        torch.manual_seed(3)
        record = engine.record(x)
        for layer in record.inverted:
            torch.testing.assert_close(layer.f(layer.x), layer.h, rtol=1e-12, atol=1e-12)


def test_backward_passes_are_the_transposes_of_what_is_repeated() -> None:
    """u · J v, by differences of f, is v · Jᵀ u, by the backward pass, where nothing has a kink."""
    for name in ("vit", "mlp_mixer", "gru_cell", "autoencoder_tied"):
        model, x, _ = made(name)
        engine = engine_with_exact_mirrors(name, model, x)
        for layer in engine.record(x, exact=True).inverted:
            u = torch.randn(layer.h.shape, generator=torch.Generator().manual_seed(1)).double()
            v = 1e-6 * torch.randn(layer.x.shape, generator=torch.Generator().manual_seed(2)).double()
            moved = (layer.f(layer.x + v) - layer.f(layer.x - v)) / 2
            pulled = layer.pull(u, below=True).below
            assert pulled is not None
            torch.testing.assert_close((u * moved).sum(), (v * pulled).sum(), rtol=1e-6, atol=1e-12)


def test_a_model_that_takes_another_path_is_recorded_again() -> None:
    """Lengths, modes and branches may change from batch to batch."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.RNNCell(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(len(x), 8)
            for step in x.unbind(1):
                h = self.cell(step, h)
            return self.head(h)

    torch.manual_seed(0)
    model = Net().double()
    loss = nn.CrossEntropyLoss()
    y = torch.randint(0, 2, (4,))
    for length in (3, 5, 3):
        x = torch.randn(4, length, 3).double()
        if length == 3:
            engine = tp.TargetPropagation(model, loss, example_input=x, method=tp.method("l-drl", decoder=Still()))
        for use in engine.record(x).uses():
            mirror = engine.bank.mirror(use.site.key, use.base)
            assert mirror is not None
            mirror.copy_(use.base.detach())
        model.zero_grad()
        engine.backward(x, y)
        got = gradients(model)
        model.zero_grad()
        loss(model(x), y).backward()
        for key, gradient in gradients(model).items():
            torch.testing.assert_close(got[key], gradient)


@pytest.mark.parametrize("name", ["gpt_fused", "dataclass_output", "image_and_vector", "mixture_of_experts"])
def test_the_baseline_takes_the_same_models(name: str) -> None:
    model, x, y = made(name)
    reference = deepcopy(model)
    torch.manual_seed(1)
    loss = cases()[name].loss(call(reference, x), y)
    loss.backward()
    torch.manual_seed(1)
    report = tp.TargetPropagation(model, cases()[name].loss, example_input=x, method="backprop").backward(x, y)
    torch.testing.assert_close(report.loss, loss.detach())
    for key, gradient in gradients(reference).items():
        torch.testing.assert_close(gradients(model)[key], gradient)


def test_steps_leave_nothing_behind(new_objects) -> None:
    """No tensor outlives its step, without the help of the garbage collector."""
    model, x, y = made("vit")
    engine = tp.TargetPropagation(model, cases()["vit"].loss, example_input=x, method="krylov", seed=0)
    engine.backward(x, y)
    gc.collect()
    gc.disable()
    try:
        counts = []
        for _ in range(3):
            engine.backward(x, y)
            counts.append(sum(type(o) is Tensor for o in gc.get_objects()))
    finally:
        gc.enable()
    assert counts[0] == counts[1] == counts[2]
