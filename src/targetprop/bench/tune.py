"""Tuning: the same number of trials for every competitor."""

from collections.abc import Callable
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from typing import Any

from optuna import Study

from targetprop.bench.competitors import Competitor
from targetprop.bench.problems import Problem, Task
from targetprop.bench.run import Progress, train
from targetprop.sweep.study import ask, completed, open_study, value_of

SEED = 1000  # of the tuning runs; those that confirm have seeds 0, 1, 2, …
Tell = Callable[[int, float], None]


def tune(
    problem: Problem, task: Task, name: str, competitor: Competitor, steps: int, trials: int, out: Path, tell: Tell,
    progress: Progress | None = None,
) -> Competitor:  # fmt: skip
    """Find a competitor's settings; the first trial has those that it came with.

    Shorter runs have the whole schedule in fewer steps.
    """
    study = study_of(problem, name, competitor, steps, out)
    for number in range(len(completed(study)), trials):
        trial, chosen = ask(study, number, competitor.space, first_values(competitor))
        history = train(problem, task, replace(competitor, **chosen), SEED, steps, progress)
        loss = inf if history.diverged else history.at(1.0)
        study.tell(trial, loss)
        tell(number + 1, loss)
    return with_values(competitor, min(completed(study)[:trials], key=value_of).params)


def study_of(problem: Problem, name: str, competitor: Competitor, steps: int, out: Path) -> Study:
    """Open or make the study of a competitor."""
    about = _plain({"problem": asdict(problem), "name": problem.name, "first": competitor.settings()})
    return open_study(out, f"{name}-{steps}", about, title=f"a study of {name}")


def first_values(competitor: Competitor) -> dict[str, float]:
    """Write the settings that a competitor came with as a trial's values."""
    return {name: span.encode(getattr(competitor, name)) for name, span in competitor.space.items()}


def with_values(competitor: Competitor, values: dict[str, float]) -> Competitor:
    """Put a trial's values into the settings; the opposite of `first_values`."""
    spans = competitor.space
    return replace(competitor, **{n: 1 - v if spans[n].complement else v for n, v in values.items()})


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what does not change the numbers, the place of the data."""
    settings = {k: v for k, v in values["problem"].items() if k not in ("root", "device")}
    return {**values, "problem": {**settings, "files": values["problem"]["root"] is not None}}
