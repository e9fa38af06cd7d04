"""Sends SIGTERM and Ctrl-C to runs at every second step, resumes them, and compares with undisturbed ones.

The signal must end the run after that very step, with a checkpoint of it, a true summary and the status of the signal.
"""

import json
import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from reliability.runs import (
    RECIPES,
    check_whole,
    content,
    differences,
    finish,
    fresh,
    quick_curves,
    start,
    train,
    whole_run,
)
from targetprop.experiments.progress import TrainingProgress

SIGNALS = {signal.SIGTERM: (143, "stopped by SIGTERM"), signal.SIGINT: (130, "stopped by Ctrl-C")}


def measure(fast: bool) -> dict[str, Any]:
    """Stop a run once at each of these steps, by both signals; returns the figures."""
    stops, equal, failures = 0, 0, []
    with TemporaryDirectory() as name, quick_curves(fast):
        folder = Path(name)
        for recipe in ("augmented",) if fast else RECIPES:
            steps = whole_run(folder, recipe)["summary"]["steps"]
            for step in range(3, steps, 4) if fast else range(1, steps, 2):
                for number in SIGNALS:
                    problem = one_stop(folder, recipe, step, number)
                    stops, equal = stops + 1, equal + (problem is None)
                    failures += [] if problem is None else [f"{recipe}, {number.name} at step {step}: {problem}"]
    return {"stops": stops, "equal": equal, "failures": failures}


def one_stop(folder: Path, recipe: str, step: int, number: signal.Signals) -> str | None:
    """Stop a run at one step and let it go on; returns what is wrong."""
    run, log = fresh(folder / "run"), folder / "log"
    arguments = [*train(run, recipe), "--checkpoint_minutes", "inf"]
    status = finish(start(arguments, log, lambda: _signal_at(step, number)))
    wanted, reason = SIGNALS[number]
    if status != wanted:
        return f"it ended with status {status}"
    lost = check_whole(run)
    if lost != 0:
        return f"{lost} steps are lost"
    summary = json.loads((run / "summary.json").read_text())
    said = tuple(summary[key] for key in ("status", "reason", "steps", "checkpoint_step"))
    if said != ("interrupted", reason, step, step):
        return f"the summary says {said}"
    status = finish(start(train(run, recipe), log))
    if status != 0:
        return f"going on ended with status {status}: {log.read_text()[-300:]}"
    config = (run / "config.yaml").read_text().replace("checkpoint_minutes: .inf", "checkpoint_minutes: 0.0")
    (run / "config.yaml").write_text(config)
    different = differences(whole_run(folder, recipe), content(run))
    return f"it differs in {', '.join(different)}" if different else None


def _signal_at(step: int, number: signal.Signals) -> None:
    """Let this process send itself a signal in the middle of a step."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored
    plain, seen = TrainingProgress.on_step, []

    def on_step(progress: TrainingProgress, record: dict[str, Any] | None) -> None:
        seen.append(record)
        if len(seen) == step:
            os.kill(os.getpid(), number)
        plain(progress, record)

    setattr(TrainingProgress, "on_step", on_step)  # noqa: B010
