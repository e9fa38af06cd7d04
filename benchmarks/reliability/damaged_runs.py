"""Damages each file of an interrupted run and resumes it through the command line.

Every damage must be refused in a sentence that names the file and changes nothing, or be harmless: the run ends bit for
bit as if it had never happened. A ``config.yaml`` that has become another valid one in what may change while a run
goes on (its epochs, device, data folder or times of checkpoints) is counted apart, as another valid value.
"""

import random
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from reliability.damage import add, ask, damages, hashes
from reliability.runs import content, differences, finish, fresh, quick_curves, start, train, whole_run
from targetprop.experiments.errors import CommandError
from targetprop.experiments.parser import build_config
from targetprop.experiments.same_config import fixed_values
from targetprop.experiments.signals import StopSignals
from targetprop.experiments.values import read_values
from targetprop.runs.checkpoint import CHECKPOINT

RECIPE, FLIPS, FAST_SHARE = "short", 8, 11
FILES = ("config.yaml", CHECKPOINT, "metrics.jsonl", "summary.json")
_MANY_EPOCHS = 20  # a digit more in the epochs is nothing to wait for


def measure(fast: bool) -> dict[str, Any]:
    """Damage every file; returns the figures."""
    figures: dict[str, Any] = {"failures": []}
    with TemporaryDirectory() as name, quick_curves(fast):
        folder = Path(name)
        whole, sound = whole_run(folder, RECIPE), stopped_run(folder)
        for file in FILES:
            bytes_of_it = (sound / file).read_bytes()
            ways = damages(bytes_of_it, random.Random(file), 3 * FLIPS if file == CHECKPOINT else FLIPS)
            for what, damaged in islice(ways, 0, None, FAST_SHARE if fast else 1):
                if damaged != bytes_of_it:
                    run = fresh(folder / "run", sound)
                    (run / file).write_bytes(damaged)
                    one_damage(figures, file, what, run, whole)
            run = fresh(folder / "run", sound)
            (run / file).unlink()
            one_damage(figures, file, "taken away", run, whole)
    return figures


def stopped_run(folder: Path) -> Path:
    """Train and stop in the middle of the second epoch; returns the run's folder."""
    run = folder / "stopped"
    steps = iter([None, None, None, 15])
    status = finish(start(train(run, RECIPE), folder / "log", lambda: _stop_after(steps)))
    assert status == 143, (folder / "log").read_text()
    return run


def _stop_after(steps: Any) -> None:
    """Let SIGTERM arrive, so to speak, with the step for which ``steps`` gives its number."""
    setattr(StopSignals, "received", property(lambda _: next(steps, 15), lambda *_: None))  # noqa: B010


def one_damage(figures: dict[str, Any], file: str, what: str, run: Path, whole: dict[str, Any]) -> None:
    """Resume a damaged run and count what comes of it."""
    place, before = f"{file}, {what}", hashes(run)
    if file == "config.yaml" and (free := another_value(run)):
        add(figures, [file, "another valid value"])
        if free == "long":
            return
        answer = ask("train", "--resume", run)
        sound = answer.status == 0 or answer.is_sentence
        return None if sound else add(figures, [file, "crashed"], f"{place}: {answer.error}")
    answer = ask("train", "--resume", run)
    if answer.status is None:
        return add(figures, [file, "crashed"], f"{place}: {answer.error}")
    if answer.status:
        problem = None if answer.is_sentence and file in answer.error else f"{place}: said {answer.error!r}"
        if hashes(run) != before:
            problem = f"{place}: was refused, and something has changed"
        return add(figures, [file, "refused"], problem)
    different = [part for part in differences(whole, content(run)) if part not in gone(file, what)]
    if different:
        return add(figures, [file, "unnoticed"], f"{place}: unnoticed, and differs in {', '.join(different)}")
    return add(figures, [file, "harmless"])


def gone(file: str, what: str) -> tuple[str, ...]:
    """Name what cannot be the same after a file was taken away on purpose, which the run says when it goes on."""
    return ("metrics", "curves") if (file, what) == ("metrics.jsonl", "taken away") else ()


def another_value(run: Path) -> str | None:
    """Tell a configuration that differs only in what may change: "long" if it has many epochs, else "short"."""
    try:
        sound, now = (
            build_config(read_values((path / "config.yaml").read_text())) for path in (run.parent / "stopped", run)
        )
    except (OSError, ValueError, CommandError):
        return None
    if now == sound or fixed_values(now) != fixed_values(sound):
        return None
    return "long" if now.loop.epochs > _MANY_EPOCHS else "short"
