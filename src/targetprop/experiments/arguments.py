"""Raw values by dotted name, from the command line and from a YAML file; the command line wins."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from targetprop.experiments.config import PARTS, SECTIONS, base_method, default_sections
from targetprop.experiments.errors import CommandError
from targetprop.experiments.nested_file import read_values

FLAGS = {"--help": "help", "-h": "help", "--print_config": "print_config"}
_WHOLE = ("cut", "propagation")
_SWITCHES = ("compile", "deterministic")  # need no value
_RENAMED = {("precision", "float32"): "fp32"}  # as earlier releases wrote it


@dataclass
class Arguments:
    """What was asked for, not yet checked.

    Attributes:
        values: text by dotted name; several numbers become a YAML list.
        flags: ``help`` and ``print_config``, if given.
        notes: sentences about what the file says and the command line overrides.
    """

    values: dict[str, str] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def read_command_line(argv: Sequence[str], command: str = "train") -> Arguments:
    """Split a command line into options and their values."""
    found, words = Arguments(), list(argv)
    while words:
        word = words.pop(0)
        if word in FLAGS:
            found.flags.add(FLAGS[word])
            continue
        if not word.startswith("--"):
            raise CommandError(f"unexpected {word!r}; options begin with --, see targetprop {command} --help")
        name, equals, value = word[2:].partition("=")
        given = [value] if equals else []
        while words and not equals and not words[0].startswith("--") and words[0] not in FLAGS:
            given.append(words.pop(0))
        if not given and not equals and name in _SWITCHES and command == "train":
            given = ["true"]
        if not given:
            raise CommandError(f"--{name} needs a value; see targetprop {command} --help")
        if len(given) > 1 and not all(text.isdecimal() for text in given):
            raise CommandError(f"--{name} got {len(given)} values; put it in quotes if it has spaces")
        found.values[name] = given[0] if len(given) == 1 else f"[{', '.join(given)}]"
    return found


def read_file(path: str) -> dict[str, str]:
    """Read a nested YAML file."""
    try:
        text = Path(path).expanduser().read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--config {path} cannot be read ({error}); give a YAML file") from error
    try:
        values = read_values(text)
    except ValueError as error:
        raise CommandError(f"--config {path} {error}") from error
    return {name: _RENAMED.get((name, text), text) for name, text in values.items()}


def merge(file: Mapping[str, str], line: Arguments) -> Arguments:
    """Let the command line override the file.

    Where the command line chooses another method, or another class of a section, than the file has, the file's settings
    of what was replaced are left out, and a note says so.
    """
    kept, notes = dict(file), []
    for switch, section in _switches():
        new = line.values.get(switch)
        if new is None or _named(file, switch) in (None, new):
            continue
        inside = (*PARTS, *_WHOLE) if section is None else (section,)
        lost = [name for name in kept if name.partition(".")[0] in inside]
        for name in lost:
            del kept[name]
        if [name for name in lost if name != switch]:
            notes.append(f"--{switch} {new} replaces the file's choice, so its {', '.join(lost)} are left out")
    return Arguments({**kept, **line.values}, line.flags, [*line.notes, *notes])


def _switches() -> Iterator[tuple[str, str | None]]:
    yield "method", None
    for section, kind in SECTIONS.items():
        if kind is not None:
            yield f"{section}.{kind.key}", section


def _named(file: Mapping[str, str], switch: str) -> str | None:
    """Find what the file chooses, in so many words or by leaving the default."""
    if switch == "method":
        return file.get("method")
    default = default_sections(base_method(file)).get(switch.partition(".")[0])
    return file.get(switch, getattr(default, "name", None))
