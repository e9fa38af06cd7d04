"""Runs: one network trained by one method, a process each on one core, many side by side."""

import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import targetprop as tp
from accuracy.tasks import TASKS, Task, prepare
from targetprop.experiments.schedules import Linear


@dataclass(frozen=True)
class Run:
    """What to train, by what, and how.

    Attributes:
        task: name of the task.
        label: what the row is called.
        method: the method.
        optimizer: "adam" or "sgd".
        lr: learning rate.
        momentum: of SGD.
        decay: whether the rate rises over the first 5 % of the steps and falls to zero on a straight line.
        seed: of weights, order of data, decoders.
        held_out: judge by a part of the training set instead of the test set.
    """

    task: str
    label: str
    method: tp.Method
    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    decay: bool = False
    seed: int = 0
    held_out: bool = False

    def described(self) -> dict[str, Any]:
        """List the settings as JSON takes them."""
        return asdict(replace(self, method=None)) | {"method": str(self.method).splitlines()}  # pyright: ignore

    def result_in(self, results: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """Find the result of these settings, or nothing."""
        settings = self.described()
        return next((r for r in results if all(r[key] == value for key, value in settings.items())), None)


def train(run: Run, root: str, limit: int | None, epochs: int | None) -> dict[str, Any]:
    """Train one network; return losses by epoch, accuracy in per cent and time per step."""
    torch.set_num_threads(1)
    task = TASKS[run.task]
    device = torch.device("cuda" if task.accelerate and torch.cuda.is_available() else "cpu")
    data = prepare(task, root, held_out=run.held_out, limit=limit).to(device)
    torch.manual_seed(run.seed)
    model = task.build(data).to(device)
    engine = tp.TargetPropagation(
        model, nn.CrossEntropyLoss(), example_input=data.train_x[: task.batch], method=run.method, seed=run.seed
    )
    steps = (len(data.train_x) // task.batch) * (epochs or task.epochs)
    optimizer, schedule = _optimizer(run, model, steps)
    generator, losses, begun = torch.Generator().manual_seed(run.seed), [], time.perf_counter()
    try:
        for _ in range(epochs or task.epochs):
            losses.append(_epoch(task, data, engine, optimizer, schedule, generator))
    except FloatingPointError as error:
        return run.described() | {"diverged": str(error), "losses": losses}
    seconds = (time.perf_counter() - begun) / steps
    model.eval()
    with torch.no_grad():
        right = [
            (model(x).argmax(1) == y).sum()
            for x, y in zip(data.test_x.split(1000), data.test_y.split(1000), strict=True)
        ]
    accuracy = 100 * float(sum(right)) / len(data.test_x)
    found = {"losses": losses, "accuracy": accuracy, "seconds_per_step": seconds, "device": _name(device)}
    return run.described() | found


def _optimizer(run: Run, model: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    if run.optimizer == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=run.lr)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=run.lr, momentum=run.momentum)
    return optimizer, Linear(warmup=0.05).make(optimizer, steps) if run.decay else None


def _epoch(task: Task, data: Any, engine: Any, optimizer: Any, schedule: Any, generator: torch.Generator) -> float:
    device, total, steps = data.train_x.device, 0.0, len(data.train_x) // task.batch
    order = torch.randperm(len(data.train_x), generator=generator).to(device)
    vary = data.augmentation.begin_epoch(generator, device)
    for rows in order[: steps * task.batch].split(task.batch):
        optimizer.zero_grad()
        total = total + engine.backward(vary(data.train_x[rows]), data.train_y[rows]).loss.detach()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return float(total) / steps


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, 1 thread"


def train_all(
    runs: Sequence[Run], processes: int, root: str, limit: int | None, epochs: int | None,
    on_result: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """Train side by side; hears of each result as it comes, and returns all in the order of the runs."""
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[int, dict[str, Any]] = {}
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(train, run, root, limit, epochs): place for place, run in enumerate(runs)}
        for number, done in enumerate(as_completed(waiting), start=1):
            found[waiting[done]] = result = done.result()
            on_result(result)
            print(f"{number} of {len(runs)}: {describe(result)}", file=sys.stderr, flush=True)
    return [found[place] for place in range(len(runs))]


def describe(result: dict[str, Any]) -> str:
    """Say in a line what a run ended with."""
    name = f"{result['task']:<16} {result['label']:<34} seed {result['seed']}, rate {result['lr']:g}"
    if "diverged" in result:
        return f"{name}: diverged"
    return (
        f"{name}: loss {result['losses'][-1]:.4f}, {result['accuracy']:.2f} %,"
        f" {result['seconds_per_step'] * 1e3:.1f} ms a step"
    )


def header() -> dict[str, str]:
    """Say where the figures come from."""
    return {"torch": torch.__version__, "machine": platform.machine(), "processors": str(os.cpu_count())}


def read(path: Path) -> dict[str, Any]:
    """Read what `write` wrote."""
    return json.loads(path.read_text())


def write(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, floats of four digits."""

    def shorten(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.4g}")
        if isinstance(value, dict):
            return {key: shorten(v) for key, v in value.items()}
        return [shorten(v) for v in value] if isinstance(value, list | tuple) else value

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(shorten(content), indent=1) + "\n")
