"""Options of the command line, read off the fields and docstrings of frozen settings classes."""

import inspect
import re
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: dotted name, as it stands after ``--`` and in the nested file.
        kind: type of its value.
        default: value if it is not given.
        help: what it does.
    """

    name: str
    kind: Any
    default: Any
    help: str

    @property
    def meaning(self) -> str:
        """What values it takes, in words."""
        return _meaning(self.kind)

    @property
    def metavar(self) -> str | None:
        """Placeholder of its value in the help; None where the choices are listed."""
        if get_origin(self.kind) is Literal or self.kind is bool:
            return None
        if get_origin(self.kind) is list:
            return "N"
        known = {int: "N", float: "X"}
        return known.get(next(iter(get_args(self.kind)), self.kind), "TEXT")

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        return get_origin(self.kind) is list

    @property
    def is_text(self) -> bool:
        """Whether its value is any text, to be taken as it stands: ``--out 007`` is no number."""
        return self.kind in (str, str | None)

    def coerce(self, value: Any) -> Any:
        """Make whole numbers floats where the type is a float, and leave the rest."""
        return float(value) if self.kind is float else value


def _meaning(kind: Any) -> str:
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if get_origin(kind) is list:
        return f"a list, each {_meaning(arguments[0])}"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_meaning, arguments))
    return _WORDS.get(kind, str(kind))


def field_options(prefix: str, settings: Any) -> list[Option]:
    """List the fields of a settings object as options."""
    kinds, helps = get_type_hints(type(settings)), attribute_texts(type(settings))
    return [
        Option(f"{prefix}.{f.name}".lstrip("."), kinds[f.name], getattr(settings, f.name), helps.get(f.name, ""))
        for f in fields(settings)
    ]


def attribute_texts(kind: type) -> dict[str, str]:
    """Read the ``Attributes:`` sections of a class and its bases."""
    found: dict[str, str] = {}
    for base in kind.__mro__:
        section = re.search(r"^Attributes:\n((?:    .*\n?|\n)+)", inspect.cleandoc(base.__doc__ or ""), re.MULTILINE)
        for name, text in re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", section[1] if section else "", re.MULTILINE):
            if not text.startswith("see `"):
                found.setdefault(name, re.sub(r"\s+", " ", text).replace("`", "").rstrip("."))
    return found
