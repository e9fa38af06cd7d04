"""Numbers that are not finite: the step leaves no trace, says why and where, and the next one goes on."""

import copy
import json
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import DTYPE, rand
from targetprop import finite
from targetprop.experiments.main import main
from targetprop.finite import Look, not_finite
from targetprop.peers import Peers
from targetprop.runs.folder import RunFolder
from targetprop.runs.read import read_metrics

LOSS = nn.CrossEntropyLoss()
X, Y = rand(6, 4, seed=1), torch.tensor([0, 1, 2, 0, 1, 2])
METHODS = {
    **{name: tp.method(name) for name in tp.METHODS},
    "four updates": tp.method("dtp", decoder=tp.Denoising(updates=4)),
    "ridge": tp.method("dtp", decoder=tp.Ridge()),
}


class Root(nn.Module):
    """The square root of zero, with an infinite slope."""

    def forward(self, x: Tensor) -> Tensor:
        return (0 * x).sqrt()


def network(*top: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), *top
    ).to(DTYPE)


def make(net: nn.Sequential, method: Any = "dtp", loss=LOSS, **more) -> tp.TargetPropagation:
    return tp.TargetPropagation(net, loss, example_input=X, method=method, seed=0, **more)


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [part for key in value for part in flat(value[key])]
    if isinstance(value, list | tuple):
        return [part for item in value for part in flat(item)]
    return [value.clone()] if isinstance(value, Tensor) else [value]


def everything(net: nn.Module, engine: tp.TargetPropagation) -> list[Any]:
    """All that a step may change, copied."""
    return flat([copy.deepcopy(engine.state_dict()), net.state_dict(), [p.grad for p in net.parameters()]])


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(u, v) if isinstance(u, Tensor) else u == v for u, v in zip(a, b, strict=True)
    )


def warm(engine: tp.TargetPropagation) -> None:
    """Two good steps, whose ``.grad`` stays: there is something to be spoilt."""
    for seed in (2, 3):
        assert engine.backward(rand(6, 4, seed=seed), Y).skipped is None


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("what", ["input", "loss"])
def test_a_skipped_step_leaves_no_trace_and_the_next_is_as_if_it_had_not_been(name: str, what: str) -> None:
    spoilt = torch.tensor(False)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return LOSS(output, y) * (torch.inf if spoilt else 1.0)

    net = network()
    engine = make(net, METHODS[name], loss, on_divergence="skip")
    warm(engine)
    other = copy.deepcopy(net), copy.deepcopy(engine.state_dict())
    before = everything(net, engine)
    spoilt.fill_(what == "loss")
    report = engine.backward(torch.full_like(X, torch.nan) if what == "input" else X, Y)
    assert report.skipped is not None and ("the input holds NaN" if what == "input" else "the loss") in report.skipped
    assert "skipped: " in str(report) and same(everything(net, engine), before)
    spoilt.fill_(False)
    twin = make(other[0], METHODS[name], loss)
    twin.load_state_dict(other[1])
    for p, q in zip(net.parameters(), other[0].parameters(), strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    assert engine.backward(X, Y).skipped is None
    twin.backward(X, Y)
    assert same(everything(net, engine), everything(other[0], twin))


TRAINED = [name for name in METHODS if name not in ("backprop", "gait", "regularised", "fw-dtp")]


@pytest.mark.parametrize("name", TRAINED)
def test_decoders_that_overflow_are_named_and_left_alone(name: str) -> None:
    net, method = network().eval(), METHODS[name]
    if isinstance(method.decoder, tp.WeightMirror):  # each has its turn
        method = replace(method, decoder=replace(method.decoder, every=1))
    engine = make(net, method)
    warm(engine)
    with torch.no_grad():
        for parameter in engine.bank.parameters():
            parameter.fill_(torch.inf)
    before = everything(net, engine)
    named = r"the decoder of layer [35] has a loss|the mirror of [35]\.weight has a probe's answer"
    with pytest.raises(FloatingPointError, match=named):
        engine.backward(X, Y)
    assert same(everything(net, engine), before)
    with pytest.raises(FloatingPointError, match=named):
        engine.train_decoders(X)
    assert same(everything(net, engine), before)


@pytest.mark.parametrize("name", ["dtp", "four updates"])
def test_a_decoder_gradient_that_is_not_finite_stops_all_updates_of_the_step(name: str) -> None:
    net = network().eval()
    engine = make(net, METHODS[name])
    warm(engine)
    assert engine.decoder_optimizer is not None
    parameter, seen = next(engine.bank.parameters()), []
    last = {"dtp": 1, "four updates": 4}[name]
    handle = parameter.register_hook(lambda grad: grad * (torch.nan if seen.append(0) or len(seen) == last else 1.0))
    before = everything(net, engine)
    with pytest.raises(FloatingPointError, match="the decoders' gradient is NaN"):
        engine.backward(X, Y)
    assert len(seen) == last and same(everything(net, engine), before)
    handle.remove()
    engine.backward(X, Y)


def test_mirrors_take_back_the_steps_of_a_failed_warm_up() -> None:
    net = network().eval()
    engine = make(net, tp.method("l-drl", decoder=tp.WeightMirror(warmup=3)))
    before = everything(net, engine)
    with torch.no_grad():
        net[3].weight.mul_(1e200)  # its tanh is still finite, and the square of its answer is not
    spoilt = [net[3].weight.clone()]
    with pytest.raises(FloatingPointError, match=r"the mirror of 3\.weight has a probe's answer"):
        engine.backward(X, Y)
    assert torch.equal(net[3].weight, spoilt[0])
    with torch.no_grad():
        net[3].weight.copy_(network()[3].weight)
    assert same(everything(net, engine), before) and not bool(engine.bank.seen)


@pytest.mark.parametrize("name", ["regularised", "backprop", "least-squares"])
def test_a_gradient_that_is_not_finite_does_not_reach_the_parameters(name: str) -> None:
    net = network(Root())
    engine = make(net, METHODS[name], lambda h, y: h.mean(), on_divergence="skip")
    before = [p.grad for p in net.parameters()]
    report = engine.backward(X, Y)
    assert report.skipped is not None and "NaN or infinite" in report.skipped and torch.isfinite(report.loss)
    assert [p.grad for p in net.parameters()] == before == [None] * len(before)


@pytest.mark.parametrize("name", ["dtp", "least-squares"])
def test_a_target_that_is_not_finite_names_its_layer_and_spares_statistics(name: str) -> None:
    class Spoilt(tp.Influence):
        def __call__(self, deltas, delta_out):
            return [deltas[0] * torch.inf, *deltas[1:]]

    net = network().eval()
    engine = make(net, tp.method(name, influence=Spoilt()))
    statistics = flat(copy.deepcopy(engine.state_dict()["update"]))
    with pytest.raises(FloatingPointError, match="the target of layer 0 is NaN or infinite; lower output_target.beta"):
        engine.backward(X, Y)
    assert all(p.grad is None for p in net.parameters())
    assert same(flat(engine.state_dict()["update"]), statistics)


def test_gradients_are_added_in_the_tensors_that_were_there() -> None:
    net = network()
    engine = make(net, "l-drl")
    engine.backward(X, Y)
    tensors = [p.grad for p in net.parameters()]
    once = [t.clone() for t in tensors]
    engine.backward(X, Y)
    assert all(p.grad is t for p, t in zip(net.parameters(), tensors, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(once, tensors, strict=True) if a.any())


def test_a_failing_update_puts_the_gradients_back() -> None:
    class Failing(tp.Gradient):
        def gradients(self, layers, common, state):
            super().gradients(layers, common, state)
            raise RuntimeError("stop")

    net = network()
    make(net).backward(X, Y)
    before = [p.grad.clone() for p in net.parameters()]
    with pytest.raises(RuntimeError, match="stop"):
        make(net, tp.method("dtp", update=Failing())).backward(X, Y)
    assert same(before, [p.grad for p in net.parameters()])


def test_running_statistics_are_put_back() -> None:
    net = network()
    engine = make(net, on_divergence="skip")
    before = flat(net.state_dict())
    assert engine.backward(torch.full_like(X, torch.inf), Y).skipped
    assert same(flat(net.state_dict()), before)
    engine.backward(X, Y)
    assert not same(flat(net.state_dict()), before)


def test_an_unknown_answer_to_divergence_is_refused() -> None:
    with pytest.raises(ValueError, match="on_divergence must be 'raise' or 'skip'; got 'stop'"):
        make(network(), on_divergence="stop")


@pytest.mark.parametrize("depth", [2, 6])
def test_the_device_is_asked_as_often_however_many_layers(depth: int, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(finite, "isfinite", lambda number: asked.append(number) or isfinite(number))
    net = nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(4, 4), nn.Tanh()))).to(DTYPE)
    engine = make(net, "dtp")
    engine.backward(X, Y)
    assert len(asked) == 2


def test_one_number_tells_whether_all_is_finite() -> None:
    fine = [
        Look("integers", (torch.tensor([1, 2]),)),
        Look("half", (torch.full((10,), 6e4, dtype=torch.float16),)),  # the norm has no half-precision value
        Look("double", (rand(3, 3),)),
    ]
    assert not_finite(fine, Peers()) is None
    bad = Look("{} is bad", (rand(2), torch.tensor([0.0, -torch.inf])), "h")
    assert not_finite([*fine, bad, Look("worse", (torch.tensor(torch.nan),))], Peers()) == "h is bad"


# The command line.

SMALL = "train --network.widths 12 --batch_size 128 --data.limit 512 --log_every 2 --device cpu --method dtp".split()


@pytest.fixture
def spoil(monkeypatch):
    """Make the loss of some steps infinite, counted from 1."""
    backward, seen = tp.TargetPropagation.backward, []

    def install(*steps: int) -> None:
        def spoilt(engine, x, y, *, measure=False):
            seen.append(0)
            return backward(engine, x * torch.inf if len(seen) in steps else x, y, measure=measure)

        monkeypatch.setattr(tp.TargetPropagation, "backward", spoilt)

    return install


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return json.loads((folder / "summary.json").read_text()), read_metrics(folder)


def test_a_run_goes_on_after_skipped_steps_and_counts_them(tmp_path, spoil, capsys) -> None:
    spoil(2, 3, 6)
    assert main([*SMALL, "--epochs", "2", "--out", str(tmp_path)]) == 0
    summary, metrics = read(tmp_path)
    assert summary["status"] == "finished" and summary["skipped_steps"] == 3 and summary["steps"] == 8
    assert "(8 steps, 3 of them skipped)" in capsys.readouterr().out
    skips = [record for record in metrics if record["kind"] == "skip"]
    assert [(record["epoch"], record["step"]) for record in skips] == [(1, 2), (1, 3), (2, 6)]
    assert all("the input holds NaN or infinite values" in record["reason"] for record in skips)
    assert [record["skipped"] for record in metrics if record["kind"] == "epoch"] == [2, 1]
    assert [record["step"] for record in metrics if record["kind"] == "step"] == [1, 4, 8]
    assert summary["train_loss"] > 0 and "diverged" in metrics[0] and "fallback" in metrics[0]


def test_too_many_skipped_steps_stop_the_run_with_the_reason(tmp_path, spoil, capsys) -> None:
    spoil(2, 4, 5, 6)
    assert main([*SMALL, "--epochs", "9", "--max_skipped", "3", "--out", str(tmp_path)]) == 1
    summary, metrics = read(tmp_path)
    assert summary["status"] == "failed" and summary["skipped_steps"] == 4
    assert summary["reason"].startswith("3 steps in a row were skipped: the input holds NaN")
    assert metrics[-1]["kind"] == "skip" and metrics[-1]["step"] == 6
    assert "failed in epoch 2: 3 steps in a row were skipped: " in capsys.readouterr().err


def test_weights_that_overflow_are_named_by_their_layer(tmp_path) -> None:
    words = "--optimizer.name sgd --optimizer.lr 1e38 --network.activation relu --max_skipped 2".split()
    assert main([*SMALL, *words, "--out", str(tmp_path)]) == 1
    summary, _ = read(tmp_path)
    assert summary["reason"].startswith("2 steps in a row were skipped: layer ")


def test_skipped_steps_are_remembered_by_a_run_that_goes_on(tmp_path, spoil) -> None:
    spoil(4, 5)
    assert main([*SMALL, "--epochs", "1", "--max_skipped", "2", "--out", str(tmp_path)]) == 0
    assert main(["train", "--resume", str(tmp_path), "--epochs", "2"]) == 1
    summary, _ = read(tmp_path)
    assert summary["reason"].startswith("2 steps in a row") and summary["skipped_steps"] == 2


def test_an_epoch_of_skipped_steps_fails(tmp_path, spoil) -> None:
    spoil(1, 2, 3, 4)
    assert main([*SMALL, "--out", str(tmp_path)]) == 1
    assert read(tmp_path)[0]["reason"] == "all steps of epoch 1 were skipped; metrics.jsonl says why"


def test_a_limit_of_no_steps_is_refused(capsys) -> None:
    assert main([*SMALL, "--max_skipped", "0"]) == 2
    assert "max_skipped must be a whole number ≥ 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", tp.METHODS)
@pytest.mark.parametrize("power", [-30, 18, 20, 30])
@pytest.mark.parametrize("scaled", ["input", "first map", "second map"])
def test_a_step_that_is_taken_reports_finite_numbers_at_any_scale(name, power, scaled):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4))
    x, y = torch.randn(16, 6), torch.randint(4, (16,))
    parts = {"input": x, "first map": model[0].weight, "second map": model[2].weight}
    with torch.no_grad():
        parts[scaled].mul_(10.0**power)
    engine = tp.TargetPropagation(model, nn.CrossEntropyLoss(), example_input=x, method=name, on_divergence="skip")
    report = engine.backward(x, y, measure=True)
    told = [report.loss, report.decoder_loss, *report.delta_norms.values(), *report.target_norms.values()]
    assert report.skipped or all(isfinite(float(value)) for value in told if value is not None)


def test_metrics_are_strict_json_whatever_was_measured(tmp_path):
    RunFolder(tmp_path).log({"kind": "step", "decoder_loss": float("inf"), "residuals": {"1": float("nan"), "2": 0.5}})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "kind": "step", "decoder_loss": None, "residuals": {"1": None, "2": 0.5}
    }  # fmt: skip
