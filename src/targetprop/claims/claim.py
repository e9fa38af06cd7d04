"""What the measurement of a claim leaves behind: a record of numbers, which tables and figures are made from.

>>> slope = Number("slope", (2.01,), at_least=1.9, at_most=2.1)
>>> slope.holds, str(slope)
(True, 'slope: 2.01 (1.9 to 2.1)')
>>> Number("cosine", (0.97, 0.99), at_least=0.999).holds
False
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, isnan, nan
from typing import Any


@dataclass(frozen=True)
class Number:
    """One measured number, and what the theory allows it to be."""

    what: str  # with its unit if it has one
    values: tuple[float, ...]  # one per seed
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bounded(self) -> bool:
        """Whether the number can make a claim fail."""
        return self.at_least is not None or self.at_most is not None

    @property
    def holds(self) -> bool:
        """Whether the value of every seed is finite and within the bounds; True without bounds."""
        low = -float("inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return not self.bounded or all(isfinite(value) and low <= value <= high for value in self.values)

    @property
    def allowed(self) -> str:
        """The bounds in words; empty if there are none."""
        if self.at_least is not None and self.at_most is not None:
            return f"{format_number(self.at_least)} to {format_number(self.at_most)}"
        if self.at_least is not None:
            return f"≥ {format_number(self.at_least)}"
        return "" if self.at_most is None else f"≤ {format_number(self.at_most)}"

    @property
    def spread(self) -> str:
        """The value, or the lowest and the highest over seeds."""
        known = [value for value in self.values if not isnan(value)]
        if not known:
            return format_number(nan)
        low, high, rest = format_number(min(known)), format_number(max(known)), len(self.values) - len(known)
        return (low if low == high else f"{low} to {high}") + (f"; none for {rest} of the seeds" if rest else "")

    def __str__(self) -> str:
        """Print what was measured, and what it must be."""
        return f"{self.what}: {self.spread}{f' ({self.allowed})' if self.bounded else ''}"


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]  # a text or a number per column


@dataclass(frozen=True)
class Claim:
    """A claim, measured."""

    name: str  # short name, as ``targetprop verify --claim`` takes it
    statement: str
    prediction: str  # of the theory, as a formula where it can be
    measured: tuple[Number, ...]  # those with bounds decide the verdict
    stops: str  # where the claim stops holding and what helps there
    limits: tuple[Number, ...] = ()  # the numbers behind that
    tables: tuple[Table, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)  # what the figure draws, as plain values
    should_hold: bool = True  # whether mathematics promises it; if not, a verdict of "fails" is a finding, no fault
    seeds: tuple[int, ...] = (0,)
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """Return "holds" or "fails", or "reported" for a claim that nothing could refute."""
        if not any(number.bounded for number in self.measured):
            return "reported"
        return "holds" if all(number.holds for number in self.measured) else "fails"


def merge(claims: Sequence[Claim]) -> Claim:
    """Put the measurements of several seeds together."""
    first = claims[0]
    for other in claims:
        if _names(other) != _names(first):
            raise ValueError(f"the measurements of {first.name!r} and {other.name!r} do not have the same numbers")
    return replace(
        first,
        measured=_join([claim.measured for claim in claims]),
        limits=_join([claim.limits for claim in claims]),
        seeds=tuple(seed for claim in claims for seed in claim.seeds),
        seconds=sum(claim.seconds for claim in claims),
    )


def _names(claim: Claim) -> list[str]:
    return [claim.name, *(number.what for number in (*claim.measured, *claim.limits))]


def _join(columns: Sequence[tuple[Number, ...]]) -> tuple[Number, ...]:
    return tuple(
        replace(same[0], values=tuple(value for number in same for value in number.values))
        for same in zip(*columns, strict=True)
    )


def format_number(value: float | str) -> str:
    """Write a number for reading: three digits, more just below 1, powers of ten where they are needed.

    >>> [format_number(v) for v in (0.99973, 0.99999, 2.0, 1234, 3.1e-06, float("nan"))]
    ['0.9997', '0.99999', '2', '1234', '3.1e-6', 'none']
    """
    if isinstance(value, str):
        return value
    if not isfinite(value):
        return "none"
    if value == int(value) and abs(value) < 1e5:
        return str(int(value))
    near_one = 0.99 <= abs(value) < 1
    text = f"{value:.6g}" if near_one and abs(value) >= 0.99995 else f"{value:.4g}" if near_one else f"{value:.3g}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
