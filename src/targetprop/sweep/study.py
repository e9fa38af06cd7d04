"""Studies by Optuna on SQLite, which a second call goes on with: the engine of ``sweep`` and of ``bench``.

Trial ``k`` is drawn by a sampler of seed ``k`` from the trials before it: where trials run one after the other, a study
that was stopped goes on as if it had not been.
"""

from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner, NopPruner
from optuna.trial import FrozenTrial, Trial, TrialState

from targetprop.experiments.errors import CommandError
from targetprop.sweep.space import Space

STUDIES = "studies.db"


def open_study(
    out: Path, name: str, about: Mapping[str, Any], title: str = "", pruner: BasePruner | None = None
) -> optuna.Study:
    """Open or make a study, which is about the same all its life; ``title`` says in messages what it is."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = f"sqlite:///{out / STUDIES}"
    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True, pruner=pruner or NopPruner())
    known = study.user_attrs.get("about", about)
    differing = [key for key in dict.fromkeys((*known, *about)) if known.get(key) != about.get(key)]
    if differing:
        problem = f"{out} holds {title or name} with other settings ({', '.join(differing)})"
        raise CommandError(f"{problem}; give another --out, or remove it")
    study.set_user_attr("about", dict(about))
    return study


def ask(
    study: optuna.Study, number: int, space: Mapping[str, Space], first: Mapping[str, Any]
) -> tuple[Trial, dict[str, Any]]:
    """Draw the settings of the next trial; number 0 has the first values, as far as they are given."""
    _seed(study, number)
    if number == 0 and first:
        study.enqueue_trial(dict(first))
    trial = study.ask()
    return trial, {setting: part.suggest(trial, setting) for setting, part in space.items()}


def ask_again(study: optuna.Study, known: FrozenTrial, space: Mapping[str, Space]) -> tuple[Trial, dict[str, Any]]:
    """Take up a trial that came to no end, with the settings that it has."""
    _seed(study, known.number)
    trial = Trial(study, known._trial_id)
    return trial, {setting: part.suggest(trial, setting) for setting, part in space.items()}


def completed(study: optuna.Study) -> list[FrozenTrial]:
    """List the trials that have a result, oldest first."""
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def value_of(trial: FrozenTrial) -> float:
    """Look up the result of a trial; infinite where it diverged."""
    return inf if trial.value is None else trial.value


def _seed(study: optuna.Study, number: int) -> None:
    study.sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=5)
