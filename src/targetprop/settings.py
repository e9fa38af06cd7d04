"""What the fields of frozen settings may hold: what they are annotated with, and NaN is no number.

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True)
... class Step:
...     length: float = 0.1
...     def __post_init__(self):
...         check_types(self, "step ")
>>> Step(length=float("nan"))
Traceback (most recent call last):
ValueError: step length must be a finite number; got nan
"""

import math
from collections.abc import Callable
from dataclasses import Field, fields
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_types(settings: Any, owner: str = "") -> None:
    """Refuse fields that hold something else than they are annotated with.

    Args:
        settings: a dataclass whose fields are numbers, truth values, choices (``Literal``) or other settings.
        owner: what the settings belong to, with a space at the end, for the message.

    Raises:
        ValueError: a field does; numbers are finite unless the field's default is infinite.
    """
    for name, good, meaning in _rules(type(settings)):
        value = getattr(settings, name)
        if not good(value):
            raise ValueError(f"{owner}{name} must be {meaning}; got {value!r}")


def number(value: object) -> bool:
    """Whether a value is a number, and neither NaN nor a truth value."""
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


def whole(value: object) -> bool:
    """Whether a value is a whole number, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


@cache
def _rules(kind: type) -> list[tuple[str, Callable[[Any], bool], str]]:
    try:
        hints = get_type_hints(kind)
    except NameError:  # annotations of a class that was defined inside a function cannot always be read
        return []
    rules = ((field.name, _rule(hints[field.name], field)) for field in fields(kind))
    return [(name, *rule) for name, rule in rules if rule is not None]


def _rule(hint: Any, field: Field[Any]) -> tuple[Callable[[Any], bool], str] | None:
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return lambda value: isinstance(value, str) and value in choices, f"one of {', '.join(choices)}"
    if hint is float:
        if field.default == math.inf:
            return number, "a number"
        return lambda value: number(value) and math.isfinite(value), "a finite number"
    if hint is int:
        return whole, "a whole number"
    if hint is bool:
        return lambda value: isinstance(value, bool), "True or False"
    if not isinstance(hint, type):  # a union, or a list of something
        return None
    article = "an" if hint.__name__[0] in "AEIOU" else "a"
    return lambda value: isinstance(value, hint), f"{article} {hint.__name__}"
