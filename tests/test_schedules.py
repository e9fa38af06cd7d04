"""Learning-rate schedules against PyTorch's own, in a run, and through a checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from targetprop.experiments.data import Digits
from targetprop.experiments.main import main
from targetprop.experiments.networks import Dense
from targetprop.experiments.optimizers import AdamW, Sgd
from targetprop.experiments.progress import TrainingProgress
from targetprop.experiments.schedules import SCHEDULES, Cosine

SMALL = "train --network.widths 12 --batch_size 256 --log_every 1 --device cpu".split()
RECIPE = (
    "--schedule.name cosine --schedule.warmup 0.2 --optimizer.name sgd --optimizer.nesterov true"
    " --optimizer.weight_decay 0.001"
).split()


def optimizer(lr: float = 0.3) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def rates(one: torch.optim.Optimizer, schedule: LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(one.param_groups[0]["lr"])
        one.step()
        schedule.step()
    return found


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_schedules_are_pytorchs(name, warmup):
    steps, rising = 40, round(40 * warmup)
    mine, theirs = optimizer(), optimizer()
    left = steps - rising
    after = {
        "constant": lambda: LinearLR(theirs, 1.0, 1.0, 1),
        "linear": lambda: LinearLR(theirs, 1.0, 1e-12, left),
        "cosine": lambda: CosineAnnealingLR(theirs, left),
    }[name]()
    if rising:
        first = LinearLR(theirs, 1 / rising, 1.0, rising - 1)
        after = SequentialLR(theirs, [first, after], [rising])
    expected = rates(theirs, after, steps)
    assert rates(mine, SCHEDULES[name](warmup).make(mine, steps), steps) == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_runs_never_divide_by_zero(steps):
    for kind in SCHEDULES.values():
        for warmup in (0.0, 0.5, 0.99):
            assert all(0 <= kind(warmup).factor(step, steps) <= 1 for step in range(steps + 2))


def test_settings_reach_the_optimisers():
    parameter = nn.Parameter(torch.ones(1))
    sgd = Sgd(lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.01).make([parameter]).param_groups[0]
    assert (sgd["lr"], sgd["momentum"], sgd["nesterov"], sgd["weight_decay"]) == (0.1, 0.8, True, 0.01)
    adamw = AdamW(lr=0.1, weight_decay=0.2).make([parameter]).param_groups[0]
    assert (adamw["lr"], adamw["weight_decay"]) == (0.1, 0.2)


def test_a_run_takes_the_steps_of_the_plain_loop_with_that_schedule(tmp_path):
    assert main([*SMALL, *RECIPE, "--method", "backprop", "--epochs", "2", "--out", str(tmp_path / "run")]) == 0
    torch.manual_seed(0)
    data = Digits().load()
    model = Dense([12]).build(data.shape, data.classes)
    sgd = torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=0.001, nesterov=True)
    order = torch.Generator().manual_seed(0)
    batches = [b for _ in range(2) for b in torch.randperm(len(data.train_x), generator=order).split(256)]
    rates = [0.05 * Cosine(0.2).factor(step, len(batches)) for step in range(len(batches))]
    for batch, rate in zip(batches, rates, strict=True):
        sgd.param_groups[0]["lr"] = rate
        sgd.zero_grad()
        nn.CrossEntropyLoss()(model(data.train_x[batch]), data.train_y[batch]).backward()
        sgd.step()
    saved = load_file(tmp_path / "run" / "checkpoint.safetensors")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(saved[f"model/{name}"], value)
    assert learning_rates(tmp_path / "run") == rates


def learning_rates(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["lr"] for line in lines if line["kind"] == "step"]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, monkeypatch, schedule):
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    words = [*SMALL, *RECIPE, "--schedule.name", schedule, "--method", "l-drl", "--epochs", "3", "--out"]
    assert main([*words, whole]) == 0
    steps, plain = [], TrainingProgress.on_step

    def on_step(self, record):
        plain(self, record)
        steps.append(record)
        if len(steps) == 15:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "on_step", on_step)
        assert main([*words, parts]) == 130
    assert main(["train", "--resume", parts]) == 0
    one, two = (load_file(f"{run}/checkpoint.safetensors") for run in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert learning_rates(tmp_path / "whole") == learning_rates(tmp_path / "parts")


def test_a_run_made_longer_goes_on_at_its_place_in_the_longer_schedule(tmp_path):
    words = [*SMALL, *RECIPE, "--method", "backprop", "--out", str(tmp_path / "run")]
    assert main([*words, "--epochs", "1"]) == 0
    assert main(["train", "--resume", str(tmp_path / "run"), "--epochs", "2"]) == 0
    found = learning_rates(tmp_path / "run")
    steps = len(found) // 2
    once = [0.05 * Cosine(0.2).factor(step, steps) for step in range(steps)]
    longer = [0.05 * Cosine(0.2).factor(step, 2 * steps) for step in range(steps, 2 * steps)]
    assert found == once + longer
