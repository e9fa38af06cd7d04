"""Runs side by side: what differs between their configurations, and what they reached, best first."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from targetprop.runs.status import RunStatus

SEED, METHOD = "seed", "method"
# A method chooses these; where nothing but its name differs they say nothing more.
_OF_METHOD = ("cut", "propagation", "output_target.", "decoder.", "inversion.", "influence.", "update.")
_NO_DIFFERENCE = ("checkpoint_minutes", "log_every", "logger", "data.root")  # changes no number of a run


class Quantity(NamedTuple):
    """Something that runs record every epoch."""

    key: str
    title: str
    best: Callable[..., float]
    is_share: bool = False


LOSSES = (Quantity("validation_loss", "validation loss", min), Quantity("train_loss", "training loss", min))
QUANTITIES = (
    LOSSES[1],
    LOSSES[0],
    Quantity("validation_accuracy", "validation accuracy", max, is_share=True),
    Quantity("test_accuracy", "test accuracy", max, is_share=True),
)


def objective(epoch: Mapping[str, Any]) -> Quantity:
    """Choose what tells runs apart: the loss on held-out data if a run has some, else on its training data."""
    return next((loss for loss in LOSSES if loss.key in epoch), LOSSES[-1])


@dataclass(frozen=True)
class Run:
    """What a run folder says."""

    path: Path
    config: Mapping[str, str]  # texts by dotted name
    status: RunStatus
    summary: Mapping[str, Any]  # empty where there is none
    epochs: Sequence[Mapping[str, Any]]  # what was recorded after every epoch

    @property
    def word(self) -> str:
        """How it ended, or that it goes on."""
        return "diverged" if self.summary.get("diverged") else self.status.word

    @property
    def complete(self) -> bool:
        """Whether it has done what it was to do."""
        return self.word == "finished"

    def curve(self, key: str, x: str = "step") -> list[tuple[float, float]]:
        """List a quantity of the epochs that have it, each with the steps or seconds until then."""
        return [(epoch[x], epoch[key]) for epoch in self.epochs if epoch.get(key) is not None]


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seeds."""

    settings: Mapping[str, str]  # those in which the groups differ
    runs: Sequence[Run]

    @property
    def counted(self) -> list[Run]:
        """The complete runs, whose figures are averaged; if there is none, those that have come farthest."""
        complete = [run for run in self.runs if run.complete and run.epochs]
        most = max(len(run.epochs) for run in self.runs)
        return complete or [run for run in self.runs if run.epochs and len(run.epochs) == most]

    @property
    def name(self) -> str:
        """What it is called in figures: its settings without the section where the rest tells enough."""
        leaves = [name.rpartition(".")[2] for name in self.settings]
        texts = [
            shorten(value)
            if name == METHOD or leaf == "name"
            else f"{leaf if leaves.count(leaf) == 1 else name} {shorten(value)}"
            for (name, value), leaf in zip(self.settings.items(), leaves, strict=True)
            if value
        ]
        return ", ".join(texts) or self.runs[0].config.get(METHOD, "run")

    def finals(self, quantity: Quantity) -> list[float]:
        """List the last value of each run that counts."""
        return [curve[-1][1] for run in self.counted if (curve := run.curve(quantity.key))]

    def bests(self, quantity: Quantity) -> list[float]:
        """List the best value of each run that counts."""
        curves = [run.curve(quantity.key) for run in self.counted]
        return [quantity.best(value for _, value in curve) for curve in curves if curve]

    def seconds(self) -> list[float]:
        """List the time that each run that counts has spent in training steps."""
        return [run.epochs[-1]["seconds"] for run in self.counted]

    def statuses(self) -> str:
        """Count how the runs have ended, and say how far they came where that is not to the end."""
        texts = [run.word if run.complete else f"{run.word} at epoch {_reached(run)}" for run in self.runs]
        counts = {text: texts.count(text) for text in texts}
        return ", ".join(text if len(self.runs) == 1 else f"{count} {text}" for text, count in counts.items())


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, best first."""

    groups: Sequence[Group]

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [run for group in self.groups for run in group.runs]

    @property
    def differing(self) -> list[str]:
        """The settings in which the groups differ."""
        return list(self.groups[0].settings)

    @property
    def common(self) -> dict[str, str]:
        """The settings that all runs have alike."""
        first = self.runs[0].config
        return {n: v for n, v in first.items() if all(run.config.get(n) == v for run in self.runs)}

    @property
    def quantities(self) -> list[Quantity]:
        """What the runs record."""
        return [q for q in QUANTITIES if any(q.key in epoch for run in self.runs for epoch in run.epochs[-1:])]

    def notes(self) -> list[str]:
        """Say why runs have not come to their end, or are no success, and what the times are of."""
        notes = [run.status.sentence for run in self.runs if not run.complete]
        machines = dict.fromkeys(f"{r.summary['device']} of {r.summary['host']}" for r in self.runs if r.summary)
        if len(machines) > 1:
            notes.append(f"the times are of different machines: {', '.join(machines)}")
        return notes


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Find out what differs between runs, and put those together that differ in their seeds alone.

    They are ordered by the loss on held-out data if all have some, else by the training loss.
    """
    names = find_differences([run.config for run in runs])
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.config.get(name, "") for name in names), []).append(run)
    found = [Group(dict(zip(names, values, strict=True)), members) for values, members in groups.items()]
    recorded = [run.epochs[-1] for run in runs if run.epochs]
    loss = next((loss for loss in LOSSES if all(loss.key in epoch for epoch in recorded)), LOSSES[-1])
    return Comparison(sorted(found, key=lambda group: _rank(group, loss)))


def find_differences(configs: Sequence[Mapping[str, str]]) -> list[str]:
    """List the settings that differ, but for seeds and for what follows from the choice of a method or a class.

    >>> dtp, sgd = {"method": "dtp", "cut": "pre", "seed": "0"}, {"method": "bp", "optimizer.lr": "1", "seed": "1"}
    >>> find_differences([dtp, sgd, sgd | {"optimizer.lr": "2"}])
    ['method', 'optimizer.lr']
    """
    names = dict.fromkeys(name for config in configs for name in config)
    return [name for name in names if _differs(name, configs)]


def shorten(text: str) -> str:
    """Write numbers with three digits, and paths without folders.

    >>> shorten("0.0023456"), shorten("[64, 64]"), shorten("100000"), shorten("my/nets.py:Net")
    ('0.00235', '[64, 64]', '100000', 'nets.py:Net')
    """
    try:
        return text if text.lstrip("-").isdecimal() else f"{float(text):.3g}"
    except ValueError:
        return text.rpartition("/")[2]


def _differs(name: str, configs: Sequence[Mapping[str, str]]) -> bool:
    values = {config.get(name) for config in configs}
    if len(values) == 1 or name in (SEED, *_NO_DIFFERENCE):
        return False
    if name.startswith(_OF_METHOD):
        by_method: dict[str | None, set[str | None]] = {}
        for config in configs:
            by_method.setdefault(config.get(METHOD), set()).add(config.get(name))
        return any(len(values) > 1 for values in by_method.values())
    return len(values - {None}) > 1


def _rank(group: Group, loss: Quantity) -> tuple[bool, float]:
    """Order groups by a last loss; those of which no run is complete come last."""
    losses = group.finals(loss)
    return not any(run.complete for run in group.runs), fmean(losses) if losses else inf


def _reached(run: Run) -> str:
    return f"{len(run.epochs)}/{run.config.get('epochs', '?')}"


def spread(values: Iterable[float], write: Callable[[float], str]) -> str:
    """Write a mean, and the lowest and the highest value where they look different.

    >>> spread([1.0, 2.0], "{:.1f}".format), spread([1.0], "{:.1f}".format), spread([], str)
    ('1.5 (1.0–2.0)', '1.0', '–')
    """
    values = list(values)
    if not values:
        return "–"
    low, mean, high = write(min(values)), write(fmean(values)), write(max(values))
    return mean if low == high else f"{mean} ({low}–{high})"
