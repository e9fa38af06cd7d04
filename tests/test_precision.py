"""bfloat16 in the training loop: close to float32, which weights, gradients, statistics and differences stay in."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import targetprop as tp
from targetprop.experiments.loop import casting, evaluate
from targetprop.experiments.main import main
from targetprop.layers import record_layers
from targetprop.targets import propagate

CPU = torch.device("cpu")
TRANSPOSE = tp.DifferenceReconstruction(
    w=0.0, damping=1.0, activation="transpose", share=0.5, penalty="matched", start="zero"
)


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Linear(27, 32), nn.Tanh(), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 10))


def conv() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 10),
    )  # fmt: skip


SHAPES = {dense: (27,), conv: (3, 8, 8)}


def batch(make, n: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, *SHAPES[make], generator=generator), torch.arange(n) % 10


def gradient(make, method: tp.Method | str, precision, warm: int = 10) -> tuple[Tensor, tp.StepReport]:
    """The gradient after some updates of the decoders in float32, in one vector."""
    torch.manual_seed(0)
    model, (x, y) = make(), batch(make)
    engine = tp.TargetPropagation(model, nn.CrossEntropyLoss(), example_input=x, method=method, seed=0)
    for _ in range(warm):
        engine.train_decoders(x)
    with casting(CPU, precision):
        report = engine.backward(x, y)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), report


CASES = {  # method, and how far bfloat16's 8 binary digits may lead its gradient away
    "backprop": ("backprop", 0.05),
    "mirrors": ("l-drl", 0.05),
    "dtp": ("dtp", 0.1),
    "difference reconstruction": (tp.method("l-drl", decoder=TRANSPOSE), 0.05),
    "with expected penalty": (tp.method("l-drl", decoder=replace(TRANSPOSE, penalty="expected")), 0.05),
    "delta rule": (tp.method("dtp", update=tp.DeltaRule(pullback="transpose")), 0.1),
    "least squares": (tp.method("dtp", update=tp.LeastSquares()), 0.05),
    "krylov": ("krylov", 0.4),
    "kronecker": ("kronecker", 0.05),
}


@pytest.mark.parametrize("make", [dense, conv])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_close_to_those_in_float32(name, make):
    method, tolerance = CASES[name]
    expected, report = gradient(make, method, "fp32")
    found, rounded = gradient(make, method, "bf16")
    assert rounded.loss.dtype == torch.float32 and rounded.output.dtype == torch.bfloat16
    assert abs(rounded.loss - report.loss) < 1e-3
    assert 0 < (found - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("name", tp.METHODS)
def test_every_method_takes_a_step_in_bfloat16(name):
    found, report = gradient(dense, name, "bf16", warm=2)
    assert found.isfinite().all() and found.norm() > 0 and report.skipped is None


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.LSTM(9, 16, batch_first=True), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x.unflatten(1, (3, 9)))[0].mean(1))


SOLVED = ["kronecker", "least-squares", "gauss-newton"]  # which write nn.LSTM out: fused it needs a processor for bf16


@pytest.mark.parametrize(("name", "make"), [*((n, dense) for n in (*SOLVED, "l-drl")), *((n, Lstm) for n in SOLVED)])
def test_training_in_bfloat16_ends_where_float32_does(name, make):
    """Also where the engine is built under autocast, and where it is on in every other step."""
    ends, (x, y) = [], batch(dense)
    rate = {"kronecker": 1.0, "l-drl": 2.0}.get(name, 0.25)
    for precision, built in (("fp32", "fp32"), ("bf16", "bf16"), ("every other", "fp32")):
        torch.manual_seed(0)
        model = make()
        with casting(CPU, built):
            engine = tp.TargetPropagation(model, nn.CrossEntropyLoss(), example_input=x, method=name, seed=0)
        optimiser, losses = torch.optim.SGD(model.parameters(), rate), []
        for step in range(16):
            optimiser.zero_grad()
            with casting(CPU, precision if precision in ("fp32", "bf16") else ("fp32", "bf16")[step % 2]):
                losses.append(float(engine.backward(x, y).loss))
            optimiser.step()
        ends.append(losses[-1] / losses[0])
    assert max(ends) < 0.95 and max(ends[1:]) < 1.5 * ends[0] + 0.05, ends


@pytest.mark.parametrize(
    "method",
    [tp.method("krylov", inversion=tp.InputSpace(steps=3, anderson=2)), tp.method("dtp", decoder=tp.Ridge())],
    ids=["Anderson", "ridge"],
)
def test_solvers_without_half_precision_take_float32(method):
    found, _ = gradient(dense, method, "bf16")
    assert found.isfinite().all()


def test_weights_changed_meanwhile_are_cast_again():
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)
    with casting(CPU, "bf16"):
        before = layer(x)
        with torch.no_grad():
            layer.weight.mul_(-1)
            layer.bias.mul_(-1)
        torch.testing.assert_close(layer(x), -before)


def test_statistics_keep_their_digits():
    norm, x = nn.BatchNorm2d(4), (3 + torch.randn(8, 4, 5, 5, generator=torch.Generator().manual_seed(0))).bfloat16()
    with casting(CPU, "bf16"):
        (layer,) = record_layers(norm, x).layers
        again = layer.f(layer.x)
    (step,) = layer.steps
    mean, variance = step.args[0][1:3]
    torch.testing.assert_close(mean, x.double().mean((0, 2, 3)).float())
    torch.testing.assert_close(variance, x.double().var((0, 2, 3), correction=0).float())
    torch.testing.assert_close(again, layer.h, rtol=0.01, atol=0.01)  # in bfloat16


def test_evaluation_takes_the_loss_in_float32():
    torch.manual_seed(0)
    model, (x, y) = dense(), batch(dense)
    with casting(CPU, "bf16"):
        loss, accuracy = evaluate(model, nn.CrossEntropyLoss(), x, y)
        output = model(x).detach()
    assert loss == pytest.approx(float(nn.functional.cross_entropy(output.float(), y)), rel=1e-6)
    assert accuracy == float((output.argmax(1) == y).float().mean())


def test_a_run_in_bf16_stays_close_and_resumes_bit_for_bit(tmp_path):
    words = "train --method dtp --precision bf16 --network.widths 24 --data.limit 300 --batch_size 100".split()
    whole, parts, plain = (str(tmp_path / name) for name in ("whole", "parts", "plain"))
    assert main([*words, "--device", "cpu", "--epochs", "2", "--out", whole]) == 0
    assert main([*words, "--device", "cpu", "--epochs", "1", "--out", parts]) == 0
    assert main(["train", "--resume", parts, "--epochs", "2"]) == 0
    assert main([*words, "--precision", "fp32", "--device", "cpu", "--epochs", "2", "--out", plain]) == 0
    one, two, three = (load_file(f"{run}/checkpoint.safetensors") for run in (whole, parts, plain))
    assert all(torch.equal(one[name], two[name]) for name in one)
    weights = [name for name in one if name.startswith("model/")]
    assert {one[name].dtype for name in weights} == {torch.float32}
    assert any(not torch.equal(one[name], three[name]) for name in weights)
    summaries = [json.loads((tmp_path / run / "summary.json").read_text()) for run in ("whole", "plain")]
    assert summaries[0]["test_loss"] == pytest.approx(summaries[1]["test_loss"], abs=0.02)


BETA = 1e-4  # the changes are a hundredth of bfloat16's rounding of the activations that they change
ITERATED = {  # rule, and how far from float32's its changes may be; bfloat16 itself rounds by 2⁻⁹ = 0.002
    "input-space": (tp.InputSpace(steps=5), 0.01),
    "Anderson": (tp.InputSpace(steps=5, anderson=2), 0.04),
    "output-space": (tp.OutputSpace(steps=5), 0.015),
    "krylov": (tp.Krylov(steps=2, damping=0.3), 0.015),
    "regularised": (tp.Regularised(steps=5, alpha=0.15, damping=1.0), 0.02),
    "difference": (tp.Difference(), 0.01),
    "direct": (tp.Direct(), 0.01),
}


def changes(method: tp.Method, precision) -> tuple[list[Tensor], dict]:
    torch.manual_seed(0)
    model, (x, y) = dense(), batch(dense)
    engine = tp.TargetPropagation(model, nn.CrossEntropyLoss(), example_input=x, method=method, seed=0)
    for _ in range(30):
        engine.train_decoders(x)
    with casting(CPU, precision):
        record = engine.record(x)
        delta = method.output_target(record.output, y, engine.loss).delta
        with torch.no_grad():
            found = propagate(record, engine.bank, delta, method.inversion, method.propagation, measure=True)
    residuals = {name: float(outcome.forward_residual.square().sum()) for name, outcome in found.outcomes.items()}
    return [delta.float() for delta in found.deltas], residuals


# Left out is what 0.4 % of noise in the input changes by 10 % and more in float32 too: Anderson mixing of composites,
# and Krylov spaces of near inverses, whose second dimension is small.
SMALL = [(name, propagation, tp.WeightMirror()) for name in ITERATED for propagation in ("layerwise", "composite")]
SMALL = [case for case in SMALL if case[:2] != ("Anderson", "composite")]
SMALL += [("input-space", "joint", tp.WeightMirror())]
SMALL += [
    (name, "layerwise", decoder)
    for name in ("input-space", "Anderson", "output-space", "difference", "direct")
    for decoder in (tp.Denoising(activation="inverse"), tp.Exact(damping=0.1))
]


@pytest.mark.parametrize(("name", "propagation", "decoder"), SMALL)
def test_differences_keep_their_digits_at_a_small_beta(name, propagation, decoder):
    rule, tolerance = ITERATED[name]
    target = tp.GradientStep(beta=BETA)
    method = tp.Method(
        decoder=decoder, inversion=rule, propagation=propagation, output_target=target, influence=tp.Influence()
    )
    (expected, residuals), (found, rounded) = changes(method, "fp32"), changes(method, "bf16")
    for a, b in zip(found, expected, strict=True):
        assert 0 < (a - b).norm() < tolerance * b.norm()
    for layer in residuals:
        assert rounded[layer] == pytest.approx(residuals[layer], rel=0.5)


def test_a_run_in_fp64_is_in_float64_throughout(tmp_path):
    words = "train --precision fp64 --network.widths 24 --data.limit 300 --batch_size 100 --device cpu".split()
    whole, parts = (str(tmp_path / name) for name in ("whole", "parts"))
    assert main([*words, "--epochs", "2", "--out", whole]) == 0
    assert main([*words, "--epochs", "1", "--out", parts]) == 0
    assert main(["train", "--resume", parts, "--epochs", "2"]) == 0
    one, two = (load_file(f"{run}/checkpoint.safetensors") for run in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)
    numbers = {name: tensor for name, tensor in one.items() if tensor.is_floating_point() and tensor.dim()}
    assert any(name.startswith("engine/") for name in numbers)
    assert {tensor.dtype for tensor in numbers.values()} == {torch.float64}
    assert main(["inspect", whole, "--samples", "8"]) == 0


def test_autocast_with_float16_warns_that_gradients_are_not_scaled() -> None:
    net, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), torch.randn(4, 4)
    engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x)
    with torch.autocast("cpu", torch.float16), pytest.warns(UserWarning, match="leave torch.amp.GradScaler out"):
        engine.backward(x, torch.zeros(4, dtype=torch.long))
