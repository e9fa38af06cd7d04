"""Who competes: a competitor's name with the length of its schedule, and settings taken from an earlier result."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from targetprop.bench.competitors import COMPETITORS, Competitor
from targetprop.bench.problems import Problem
from targetprop.experiments.errors import CommandError, suggest
from targetprop.settings import check_ranges, check_types


@dataclass(frozen=True)
class Entry:
    """A competitor with a schedule."""

    name: str
    share: float = 1.0  # share of the problem's steps after which its schedule and its runs end, in (0, 1]

    def __post_init__(self) -> None:
        """Check the share; a wrong one raises `ValueError`."""
        check_types(self, "entry ")
        check_ranges(self, "entry ", share=(0 < self.share <= 1, "a number in (0, 1]"))

    @classmethod
    def read(cls, word: str) -> Self:
        """Read ``NAME`` or ``NAME@SHARE``.

        >>> Entry.read("adam@0.25").label
        'adam@0.25'
        """
        name, at, text = word.partition("@")
        if name not in COMPETITORS:
            raise CommandError(f"unknown competitor {name!r}; {suggest(name, COMPETITORS)}")
        try:
            return cls(name, float(text) if at else 1.0)
        except ValueError as error:
            share = "the share of the steps must be a number in (0, 1]"
            raise CommandError(f"{word}: {share}, as in {name}@0.25") from error

    @property
    def label(self) -> str:
        """What it is called in tables."""
        return self.name if self.share == 1 else f"{self.name}@{self.share:g}"

    def steps(self, problem: Problem) -> int:
        """Count the steps of its runs."""
        return max(1, round(self.share * problem.steps))


def read_settings(path: Path) -> dict[str, Competitor]:
    """Read the settings of an earlier result."""
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["competitors"]
        return {label: replace(COMPETITORS[Entry.read(label).name], **f["settings"]) for label, f in found.items()}
    except OSError as error:
        raise CommandError(f"--settings {path} cannot be read ({error})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(f"--settings {path} is no result of targetprop bench ({error!r})") from error
