"""Numbers that no tensor could hold or no loop could reach are refused before they get there."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from targetprop.experiments.errors import CommandError

_WHOLE, _REAL = 2**31 - 1, 1e38
_OWN_RANGE = ("seed",)


def read_count(name: str, text: str) -> int:
    """Read a number of things."""
    digits = text.lstrip("0")
    if not (text.isascii() and text.isdecimal() and digits):
        raise CommandError(f"--{name} must be a whole number ≥ 1; got {text!r}")
    if len(digits) > len(str(_WHOLE)) or int(digits) > _WHOLE:
        raise CommandError(f"--{name} {text} is too large; give a whole number up to {_WHOLE}")
    return int(digits)


def check_numbers(values: Mapping[str, Any]) -> None:
    """Check the size of every number of a configuration."""
    for name, value in values.items():
        for number in value if isinstance(value, list) else [value]:
            if name in _OWN_RANGE or isinstance(number, bool):
                continue
            if isinstance(number, int) and abs(number) > _WHOLE:
                raise CommandError(f"--{name} {number} is too large; give a whole number up to {_WHOLE}")
            if isinstance(number, float) and isfinite(number) and abs(number) > _REAL:
                raise CommandError(f"--{name} {number} is too large; give a number up to {_REAL:g}")
