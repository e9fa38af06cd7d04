"""Tuning: the same number of trials for every competitor, by Optuna on SQLite, so that a second call goes on."""

from collections.abc import Callable
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from targetprop.bench.competitors import Competitor
from targetprop.bench.problems import Problem, Task
from targetprop.bench.run import Progress, train
from targetprop.experiments.errors import CommandError

STUDIES = "studies.db"
SEED = 1000  # of the tuning runs; those that confirm have seeds 0, 1, 2, …
Tell = Callable[[int, float], None]


def tune(
    problem: Problem, task: Task, name: str, competitor: Competitor, steps: int, trials: int, out: Path, tell: Tell,
    progress: Progress | None = None,
) -> Competitor:  # fmt: skip
    """Find a competitor's settings; the first trial has those that it came with.

    Trial ``k`` is drawn by a sampler of seed ``k`` from the trials before it: a study that was stopped goes on as if it
    had not been. Shorter runs have the whole schedule in fewer steps.
    """
    study = open_study(problem, name, competitor, steps, out)
    for number in range(len(completed(study)), trials):
        study.sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=5)
        if number == 0:
            study.enqueue_trial(first_values(competitor))
        trial = study.ask()
        chosen = {setting: span.suggest(trial, setting) for setting, span in competitor.space.items()}
        history = train(problem, task, replace(competitor, **chosen), SEED, steps, progress)
        loss = inf if history.diverged else history.at(1.0)
        study.tell(trial, loss)
        tell(number + 1, loss)
    return with_values(competitor, min(completed(study)[:trials], key=_loss).params)


def open_study(problem: Problem, name: str, competitor: Competitor, steps: int, out: Path) -> optuna.Study:
    """Open or make the study of a competitor."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = f"sqlite:///{out / STUDIES}"
    study = optuna.create_study(storage=storage, study_name=f"{name}-{steps}", load_if_exists=True)
    about = _plain({"problem": asdict(problem), "name": problem.name, "first": competitor.settings()})
    if study.user_attrs.get("about", about) != about:
        raise CommandError(f"{out} holds a study of {name} with other settings; give another --out, or remove it")
    study.set_user_attr("about", about)
    return study


def completed(study: optuna.Study) -> list[FrozenTrial]:
    """List the trials that have a result, oldest first."""
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def first_values(competitor: Competitor) -> dict[str, float]:
    """Write the settings that a competitor came with as a trial's values."""
    return {name: span.encode(getattr(competitor, name)) for name, span in competitor.space.items()}


def with_values(competitor: Competitor, values: dict[str, float]) -> Competitor:
    """Put a trial's values into the settings; the opposite of `first_values`."""
    spans = competitor.space
    return replace(competitor, **{n: 1 - v if spans[n].complement else v for n, v in values.items()})


def _loss(trial: FrozenTrial) -> float:
    return inf if trial.value is None else trial.value


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what does not change the numbers, the place of the data."""
    settings = {k: v for k, v in values["problem"].items() if k not in ("root", "device")}
    return {**values, "problem": {**settings, "files": values["problem"]["root"] is not None}}
