"""What a setting is drawn from: a range of numbers, or a list of choices.

>>> read_space("optimizer.lr", "1e-4..1e-2:log", float)
Range(low=0.0001, high=0.01, log=True, whole=False, complement=False)
>>> read_space("method", "dtp,l-drl", str)
Choice(values=('dtp', 'l-drl'))
>>> read_space("network.widths", "[64, 64],[32]", list[int])
Choice(values=('[64, 64]', '[32]'))
>>> read_space("network.widths", "64, 64", list[int])  # one value
"""

import re
from dataclasses import dataclass
from typing import Any, Protocol, get_args, get_origin

from optuna.trial import BaseTrial

from targetprop.experiments.errors import CommandError
from targetprop.experiments.options import TEXTS
from targetprop.settings import check_ranges, check_types

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(:log)?")
_PARTS = re.compile(r"\[[^\]]*\]|[^,\s][^,]*")


class Space(Protocol):
    """What a setting is drawn from."""

    def suggest(self, trial: BaseTrial, name: str) -> Any:
        """Ask a trial for a value."""
        ...


@dataclass(frozen=True)
class Range:
    """Numbers from one to another."""

    low: float
    high: float
    log: bool = True  # whether they are drawn evenly in logarithms
    whole: bool = False
    complement: bool = False  # whether it is the range of 1 minus the setting, as for momenta

    def __post_init__(self) -> None:
        """Check the range; a wrong one raises `ValueError`."""
        check_types(self, "range ")
        check_ranges(
            self, "range ",
            low=(not self.log or self.low > 0, "a number > 0, as it is searched in logarithms"),
            high=(self.low <= self.high and (self.high <= 1 or not self.complement), "≥ low, and ≤ 1 of a complement"),
        )  # fmt: skip

    def suggest(self, trial: BaseTrial, name: str) -> float:
        """Ask a trial for a value."""
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        value = trial.suggest_float(name, self.low, self.high, log=self.log)
        return 1 - value if self.complement else value

    def encode(self, setting: float) -> float:
        """Find the value that a trial must have for a setting; the opposite of `suggest`."""
        return min(max(1 - setting if self.complement else setting, self.low), self.high)


@dataclass(frozen=True)
class Choice:
    """Values in a list."""

    values: tuple[str, ...]

    def suggest(self, trial: BaseTrial, name: str) -> str:
        """Ask a trial for one of them."""
        return trial.suggest_categorical(name, self.values)


def read_space(name: str, text: str, kind: Any) -> Range | Choice | None:
    """Read what was given for a setting of some type; None for a value."""
    kinds = get_args(kind) or (kind,)
    found = _RANGE.fullmatch(text)
    if found and (int in kinds or float in kinds) and get_origin(kind) is not list:
        return _read_range(name, found, whole=float not in kinds)
    parts = tuple(part.strip() for part in _PARTS.findall(text))
    is_list = kind in TEXTS or get_origin(kind) is list
    if len(parts) < 2 or (is_list and not all(part.startswith("[") for part in parts)):
        return None
    return Choice(tuple(dict.fromkeys(parts)))


def _read_range(name: str, found: re.Match[str], *, whole: bool) -> Range:
    try:
        low, high = (int(text) if whole else float(text) for text in found.groups()[:2])
        return Range(low, high, log=bool(found[3]), whole=whole)
    except ValueError as error:
        kind = "whole numbers" if whole else "numbers"
        problem = f"--{name} {found[0]} is no range of {kind}"
        raise CommandError(f"{problem}; write LOW..HIGH, or LOW..HIGH:log with LOW > 0") from error
