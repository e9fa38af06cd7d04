"""Options read off the fields and docstrings of frozen settings classes: converted and described by jsonargparse."""

import re
import sys
from argparse import SUPPRESS, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from inspect import cleandoc
from math import inf
from textwrap import fill
from typing import Any, NamedTuple, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from targetprop.experiments.errors import CommandError
from targetprop.experiments.values import split_words

TEXTS = (list[str], list[str] | None)  # of options that take several words
_METAVARS = {int: "N", int | None: "N", list[int]: "N", float: "X"} | dict.fromkeys((*TEXTS, str, str | None), "TEXT")
_SPECIAL = {"inf": ".inf", "+inf": ".inf", "-inf": "-.inf", "nan": ".nan"}  # as YAML writes them
_LARGEST, _LONGEST = {int: 2**31 - 1, float: 1e38}, 60  # of a number, of a text in a message


class Option(NamedTuple):
    """An option: its dotted name, the type of its value, its default (`SUPPRESS` if it must be given) and its text."""

    name: str
    kind: Any
    default: Any
    help: str


class _Formatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the lines of descriptions."""


def field_options(settings: Any, prefix: str = "") -> list[Option]:
    """List the fields of settings, an object or a class, as options."""
    kind = settings if isinstance(settings, type) else type(settings)
    hints, helps = get_type_hints(kind), attribute_texts(kind)
    return [
        Option(f"{prefix}{f.name}", hints[f.name], getattr(settings, f.name, SUPPRESS), helps.get(f.name, ""))
        for f in fields(kind)
    ]


def attribute_texts(kind: type) -> dict[str, str]:
    """Read the ``Attributes:`` sections of a class and its bases."""
    found: dict[str, str] = {}
    for base in kind.__mro__:
        section = re.search(r"^Attributes:\n((?:    .*\n?|\n)+)", cleandoc(base.__doc__ or ""), re.MULTILINE)
        for name, text in re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", section[1] if section else "", re.MULTILINE):
            if not text.startswith("see `"):
                found.setdefault(name, re.sub(r"\s+", " ", text).replace("`", "").rstrip("."))
    return found


def make_help(usage: str, description: str, groups: Mapping[str, Sequence[Option]]) -> str:
    """Describe options by the titles of their groups; the one without a title comes first."""
    text = "\n\n".join(fill(part, 80, break_on_hyphens=False) for part in description.split("\n\n"))
    parser = ArgumentParser(usage=usage, description=text, formatter_class=_Formatter, default_env=False)
    for title, options in groups.items():
        group = parser.add_argument_group(title) if title else parser
        for name, kind, default, text in options:
            form: dict[str, Any] = {"type": kind} if kind else {"action": "store_true"}
            if kind in _METAVARS:
                form = {"type": str, "metavar": _METAVARS[kind]}
            shown = "null" if default is None else default
            group.add_argument(f"--{name}", default=shown, help=text.replace("%", "%%"), **form)
    return parser.format_help()


def convert(texts: Mapping[str, str], options: Mapping[str, Option]) -> dict[str, Any]:
    """Turn texts into values of the options' types; a text that is none stays, and the settings say what it must be."""
    values = {name: _read(name, text, options[name].kind) for name, text in texts.items()}
    for name, value in values.items():
        for number in value if isinstance(value, list) else [value]:
            largest = _LARGEST.get(type(number))
            if largest and largest < abs(number) < inf and name != "seed":  # which has a range of its own
                raise CommandError(f"--{name} {number} is too large; give at most {largest:.10g}")
    return values


def _read(name: str, text: str, kind: Any) -> Any:
    if kind == list[str]:
        return text.split()
    if kind in TEXTS:  # as in YAML
        return None if text == "null" else text.strip("[]").replace(",", " ").split()
    if not text and kind is not bool:
        raise CommandError(f"--{name} needs a value")
    if not text:
        return True
    if kind not in (str, str | None):
        text = _SPECIAL.get(text.lower(), text)
    if get_origin(kind) is list and not text.startswith("["):
        text = f"[{text}]"
    try:
        return _parser(kind).parse_args([f"--value={text}"]).value
    except ArgumentError:
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


@cache
def _parser(kind: Any) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, default_env=False)
    parser.add_argument("--value", type=kind)
    return parser


@contextmanager
def refusing(names: Iterable[str], prefix: str = "") -> Iterator[None]:
    """Turn what settings refuse into a sentence that calls their fields by the options' names."""
    try:
        yield
    except ValueError as error:
        own = rf"^(?:{prefix.rstrip('.')}[. ])?(?=(?:{'|'.join(names)})\b)"
        raise CommandError(re.sub(own, f"--{prefix}", str(error))) from error


def read_request(argv: list[str], usage: str, *kinds: type, notes: str = "") -> list[Any]:
    """Make settings of each class; where help was asked for, print it and end with `SystemExit`.

    The first class describes the command in its docstring. A field of it without default may be given as first word.
    """
    titles = ["", *((kind.__doc__ or "").partition(".\n")[0] for kind in kinds[1:])]
    groups = {title: field_options(kind) for title, kind in zip(titles, kinds, strict=True)}
    options = {option.name: option for group in groups.values() for option in group}
    command, needed = " ".join(usage.split()[:2]), [name for name, o in options.items() if o.default is SUPPRESS]
    if needed and argv and not argv[0].startswith("-"):
        argv = [f"--{needed[0]}={argv[0]}", *argv[1:]]
    line = split_words(argv, command, [name for name, option in options.items() if option.kind in TEXTS])
    if "help" in line.flags:
        description = cleandoc(kinds[0].__doc__ or "").partition("\n\nAttributes:")[0]
        sys.stdout.write(make_help(usage, f"{description}\n\n{notes}", groups))
        raise SystemExit(0)
    for name in (*line.values, *line.flags):
        if name not in options:
            close = get_close_matches(name, options, 1)
            hint = f"did you mean --{close[0]}?" if close else f"its options are --{', --'.join(options)}"
            raise CommandError(f"{command} has no option --{name}; {hint}")
    for name in needed:
        if name not in line.values:
            raise CommandError(f"{usage.partition(' [')[0]} needs {options[name].help}")
    given = convert(line.values, options)
    with refusing(options):
        return [kind(**{f.name: given[f.name] for f in fields(kind) if f.name in given}) for kind in kinds]
