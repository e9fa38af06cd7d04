"""Where a sweep's runs come from: every combination with every seed, or the trials of a study."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Protocol

from optuna.pruners import MedianPruner
from optuna.trial import FrozenTrial, Trial, TrialState

from targetprop.experiments.parser import build_config
from targetprop.report.comparison import objective, shorten
from targetprop.runs.status import RunStatus
from targetprop.sweep.process import Plan, RunProcess, has_diverged, read_epochs
from targetprop.sweep.request import Sweep
from targetprop.sweep.space import Choice
from targetprop.sweep.study import ask, ask_again, completed, open_study, value_of

NAME = "sweep"
_FIRST = 5  # trials that are never pruned, since a median of fewer says little
_PATIENCE = 5  # the first epochs of a trial, one in so many, are never pruned


class Source(Protocol):
    """Where runs come from."""

    @property
    def total(self) -> int:
        """Count the runs, those of earlier calls included."""
        ...

    @property
    def done(self) -> int:
        """Count those that have come to an end."""
        ...

    def next(self) -> Plan | None:
        """Plan the next run; None where there is none at the moment."""
        ...

    def watch(self, run: RunProcess) -> None:
        """Look at what a run has recorded."""
        ...

    def finish(self, run: RunProcess) -> str:
        """Take note of a run's end, and say it in a line."""
        ...


class Listed:
    """Runs that are known beforehand."""

    total: int
    done: int

    def __init__(self, plans: Sequence[Plan], names: Sequence[str]) -> None:
        """Leave out what an earlier call has done; names say in messages what is special about a run."""
        self.total = len(plans)
        self._names = {plan.path: name for plan, name in zip(plans, names, strict=True)}
        self._left = [plan for plan in plans if not plan.is_done]
        self.done = self.total - len(self._left)

    def next(self) -> Plan | None:
        """Plan the next run; see `Source.next`."""
        return self._left.pop(0) if self._left else None

    def watch(self, run: RunProcess) -> None:
        """Let it run; see `Source.watch`."""

    def finish(self, run: RunProcess) -> str:
        """Take note of a run's end; see `Source.finish`."""
        status = run.finish()
        self.done += 1
        return f"run {self.done}/{self.total}: {self._names[run.plan.path]}: {describe_end(run.plan.path, status)}"


@dataclass
class _Running:
    """A trial that runs."""

    trial: Trial
    reported: int  # the last epoch that the study knows


class Search:
    """Runs whose settings Optuna draws, and of which those worse than the median are pruned."""

    def __init__(self, sweep: Sweep) -> None:
        """Open the study."""
        self._sweep, self.total = sweep, sweep.trials or 0
        pruner = MedianPruner(n_startup_trials=_FIRST, n_warmup_steps=sweep.epochs // _PATIENCE + 1)
        self._study = open_study(sweep.out, NAME, sweep.about, "a sweep", pruner)
        known = self._study.get_trials(deepcopy=False)
        self._asked, self.done = len(known), sum(trial.state.is_finished() for trial in known)
        self._waiting = [trial for trial in known if trial.state == TrialState.RUNNING]  # in an earlier call
        self._running: dict[Path, _Running] = {}

    @property
    def best(self) -> FrozenTrial | None:
        """The trial with the lowest result; None where all have diverged."""
        found = min(completed(self._study), key=value_of, default=None)
        return found if found is not None and value_of(found) < inf else None

    def next(self) -> Plan | None:
        """Go on with a trial of an earlier call, or draw a new one; see `Source.next`."""
        reported = 0
        if self._waiting:
            known = self._waiting.pop(0)
            reported = max(known.intermediate_values, default=0)
            trial, chosen = ask_again(self._study, known, self._sweep.space)
        elif self.done + len(self._running) < self.total:
            trial, chosen = ask(self._study, self._asked, self._sweep.space, self._first_values())
            self._asked += 1
        else:
            return None
        plan = plan_run(self._sweep, trial.number, chosen, self._sweep.seeds[0])
        self._running[plan.path] = _Running(trial, reported)
        return plan

    def watch(self, run: RunProcess) -> None:
        """Report new epochs to the study, which may want the run stopped; see `Source.watch`."""
        epochs = run.new_epochs()
        if epochs and not run.pruned:
            self._report(run, epochs)

    def finish(self, run: RunProcess) -> str:
        """Tell the study the result; see `Source.finish`."""
        status = run.finish()
        trial = self._running.pop(run.plan.path).trial
        self.done += 1
        epochs = read_epochs(run.plan.path)
        failed = not epochs or (status.word == "failed" and has_diverged(run.plan.path))
        if status.word == "pruned":
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, inf if failed else epochs[-1][objective(epochs[-1]).key])
        best = self.best
        told = f"; best {value_of(best):.4g} (trial {best.number})" if best else ""
        title = f"trial {self.done}/{self.total}, number {trial.number}: {describe_settings(trial.params)}"
        return f"{title}: {describe_end(run.plan.path, status)}{told}"

    def _report(self, run: RunProcess, epochs: Sequence[Mapping[str, Any]]) -> None:
        mine, last = self._running[run.plan.path], epochs[-1]
        for epoch in epochs:
            if epoch["epoch"] > mine.reported:
                mine.trial.report(epoch[objective(epoch).key], epoch["epoch"])
                mine.reported = epoch["epoch"]
        if last["epoch"] < run.plan.epochs and mine.trial.should_prune():
            what = f"its {objective(last).title} until epoch {last['epoch']}"
            run.prune(f"{what} was above the median of the trials before")

    def _first_values(self) -> dict[str, Any]:
        """The configuration's own settings, as far as they lie in what is drawn from."""
        found = {}
        for name, text in self._sweep.first.items():
            part = self._sweep.space[name]
            if isinstance(part, Choice):
                found |= {name: text} if text in part.values else {}
            elif _is_number(text) and part.low <= float(text) <= part.high:
                found[name] = int(text) if part.whole else float(text)
        return found


def plan_run(sweep: Sweep, number: int, chosen: Mapping[str, Any], seed: int) -> Plan:
    """Plan a run with what was chosen."""
    values = {**sweep.values, **{name: str(value) for name, value in chosen.items()}, "seed": str(seed)}
    return Plan(sweep.out / f"{number:03}-s{seed}", values, build_config(values).loop.epochs)


def list_runs(sweep: Sweep) -> Listed:
    """List every combination of the choices with every seed."""
    found = [(n, chosen, seed) for n, chosen in enumerate(sweep.combinations()) for seed in sweep.seeds]
    return Listed([plan_run(sweep, *run) for run in found], [describe_settings({**c, "seed": s}) for _, c, s in found])


def list_confirmations(sweep: Sweep, best: FrozenTrial) -> Listed:
    """List the runs of the best settings with the other seeds."""
    seeds = sweep.seeds[1:]
    plans = [plan_run(sweep, best.number, best.params, seed) for seed in seeds]
    return Listed(plans, [f"settings of trial {best.number}, seed {seed}" for seed in seeds])


def describe_settings(values: Mapping[str, Any]) -> str:
    """Write settings in a line."""
    return ", ".join(f"{name} {shorten(str(value))}" for name, value in values.items())


def describe_end(path: Path, status: RunStatus) -> str:
    """Say how a run ended."""
    epochs = read_epochs(path)
    if not epochs:
        return status.word
    loss = objective(epochs[-1])
    text = f"{loss.title} {epochs[-1][loss.key]:.4g} after {len(epochs)} epochs"
    if has_diverged(path):
        return f"{text}, diverged"
    return text if status.word == "finished" else f"{text}, {status.word}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
