"""Kills runs with SIGKILL at random moments, resumes them until they end, and compares with undisturbed ones."""

import random
import time
from itertools import cycle
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
    kill,
    quick_curves,
    start,
    train,
    whole_run,
)
from targetprop.runs.status import read_status

KILLS, FAST_KILLS = 60, 6


def measure(fast: bool) -> dict[str, Any]:
    """Kill until enough kills have hit; returns the figures."""
    found = Figures(FAST_KILLS if fast else KILLS)
    with TemporaryDirectory() as folder, quick_curves(fast):
        for recipe in cycle(list(RECIPES)[: 1 if fast else None]):
            if found.kills >= found.wanted:
                break
            one_run(Path(folder), recipe, found)
    return {name: value for name, value in vars(found).items() if name not in ("wanted", "durations")}


class Figures:
    """What is counted.

    Args:
        wanted: kills that shall hit.
    """

    def __init__(self, wanted: int) -> None:
        """Begin at nothing."""
        self.wanted, self.kills, self.before_first_checkpoint, self.most_steps_lost = wanted, 0, 0, 0
        self.runs, self.equal, self.durations = 0, 0, {}
        self.failures: list[str] = []


def one_run(folder: Path, recipe: str, found: Figures) -> None:
    """Train, with kills in between until enough have hit, and compare the end."""
    whole, run, log = whole_run(folder, recipe), folder / "run", folder / "run.log"
    if recipe not in found.durations:
        began = time.monotonic()
        finish(start(train(fresh(run), recipe), log))
        found.durations[recipe] = time.monotonic() - began
    fresh(run)
    chance, status = random.Random(f"{recipe} {found.runs}"), None
    while status != 0:
        child = start(train(run, recipe), log)
        if found.kills < found.wanted:
            time.sleep(chance.uniform(0, found.durations[recipe]))
            kill(child)
        status = finish(child)
        if status not in (0, -9):
            found.failures.append(f"{recipe} ended with status {status}: {log.read_text()[-300:]}")
            return
        found.kills += status != 0
        if status != 0 and _look(run, recipe, found) == "finished":
            break
    found.runs += 1
    if different := differences(whole, content(run)):
        found.failures.append(f"{recipe} differs from the undisturbed run in {', '.join(different)}")
    else:
        found.equal += 1


def _look(run: Path, recipe: str, found: Figures) -> str:
    """Check what a kill has left; returns the run's status."""
    place = f"{recipe}, kill {found.kills}"
    try:
        lost = check_whole(run)
    except Exception as error:
        found.failures.append(f"{place}: {error}")
        return "unreadable"
    if lost is None:
        found.before_first_checkpoint += 1
    elif lost > 1:  # every step has its checkpoint here
        found.failures.append(f"{place}: {lost} steps are lost")
    found.most_steps_lost = max(found.most_steps_lost, lost or 0)
    word = read_status(run).word
    if (run / "summary.json").exists() and word not in ("killed", "finished"):
        found.failures.append(f"{place}: the status reads {word!r}")
    return word
