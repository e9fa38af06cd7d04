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
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

_Rule = tuple[Callable[[Any], bool], str]


def check_types(settings: Any, owner: str = "") -> None:
    """Refuse fields that hold something else than they are annotated with."""
    for name, good, meaning in _rules(type(settings)):
        value = getattr(settings, name)
        if not good(value):
            raise ValueError(f"{owner}{name} must be {meaning}; got {value!r}")


def check_ranges(settings: Any, owner: str = "", /, **ranges: tuple[bool, str]) -> None:
    """Refuse fields that are out of their range."""
    for name, (good, meaning) in ranges.items():
        if not good:
            raise ValueError(f"{owner}{name} must be {meaning}; got {getattr(settings, name)!r}")


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


def _rule(hint: Any, field: Field[Any]) -> _Rule | None:
    if get_origin(hint) in (list, UnionType):
        return _rule_of_parts(get_origin(hint), get_args(hint), field)
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return lambda value: isinstance(value, str) and value in choices, f"one of {', '.join(choices)}"
    if hint is float:
        if field.default == math.inf or not field.metadata.get("finite", True):
            return number, "a number"
        return lambda value: number(value) and math.isfinite(value), "a finite number"
    if hint is int:
        return whole, "a whole number"
    if hint is bool:
        return lambda value: isinstance(value, bool), "True or False"
    if hint is str:
        return lambda value: isinstance(value, str), "a text"
    if not isinstance(hint, type):  # a tuple of something, say
        return None
    article = "an" if hint.__name__[0] in "AEIOU" else "a"
    return lambda value: isinstance(value, hint), f"{article} {hint.__name__}"


def _rule_of_parts(kind: Any, parts: tuple[Any, ...], field: Field[Any]) -> _Rule | None:
    """Put together the rule of a list of something, or of something that may be None."""
    rules = [_rule(part, field) for part in parts if part is not NoneType]
    if len(rules) != 1 or rules[0] is None:
        return None
    good, meaning = rules[0]
    if kind is list:
        return lambda value: isinstance(value, list) and all(map(good, value)), f"a list, each {meaning}"
    return lambda value: value is None or good(value), f"None or {meaning}"
