"""Values as texts by dotted name: from a command line, and from nested YAML, where they are taken as written."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from targetprop.experiments.errors import CommandError

_FLAGS = {"-h": "help", "--help": "help", "--print_config": "print_config"}
_SCALARS = ("str", "int", "float", "bool", "timestamp")


@dataclass
class Options:
    """What was asked for, not yet checked: texts by name, flags, and sentences about what was overridden."""

    values: dict[str, str] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def split_words(argv: Sequence[str], command: str, several: Collection[str] = ()) -> Options:
    """Split a command line; several numbers become a list, and an option without value has an empty text.

    Options that take several texts may be repeated; their texts are joined by spaces.
    """
    found, words = Options(), list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name in _FLAGS:
            found.flags.add(_FLAGS[name])
            continue
        if not name.startswith("--"):
            hint = f"write --{word}" if equals else f"options begin with --, see {command} --help"
            raise CommandError(f"unexpected {word!r}; {hint}")
        name, given = name[2:], [value] if equals else []
        while words and not equals and not words[0].startswith("--") and words[0] not in _FLAGS:
            given.append(words.pop(0))
        if name in several:
            found.values[name] = " ".join([*found.values.get(name, "").split(), *given])
            continue
        if len(given) > 1 and not all(text.isdecimal() for text in given):
            raise CommandError(f"--{name} got {len(given)} values; put it in quotes if it has spaces")
        found.values[name] = f"[{', '.join(given)}]" if len(given) > 1 else "".join(given)
    return found


def read_file(path: str) -> dict[str, str]:
    """Read a file of options."""
    try:
        return read_values(Path(path).expanduser().read_bytes().decode())
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--config {path} cannot be read ({error}); give a YAML file") from error
    except ValueError as error:
        raise CommandError(f"--config {path} {error}") from error


def read_values(text: str) -> dict[str, str]:
    """Read nested YAML."""
    try:
        content = yaml.compose(text, yaml.SafeLoader)
        if not isinstance(content, yaml.MappingNode):
            raise ValueError("must hold lines of the form 'name: value', as --print_config writes them")
        return dict(_flatten(content, "", set()))
    except RecursionError as error:
        raise ValueError("is not valid YAML: it is nested too deeply; correct it") from error
    except yaml.YAMLError as error:
        raise ValueError(f"is not valid YAML: {error}; correct it") from error


def _flatten(node: yaml.Node, name: str, seen: set[yaml.Node | str]) -> Iterator[tuple[str, str]]:
    if node in seen:
        raise yaml.YAMLError("aliases are not supported, write the value itself")
    if name in seen:
        raise yaml.YAMLError(f"{name} is given twice")
    seen |= {node, name}
    if not node.tag.endswith(":map"):
        yield name, _text(node)
        return
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.YAMLError("a name is no text")
        yield from _flatten(value, f"{name}.{key.value}".lstrip("."), seen)


def _text(node: yaml.Node) -> str:
    kind = node.tag.rpartition(":")[2]
    if kind == "null":
        return "null"
    if kind == "seq" and all(isinstance(part, yaml.ScalarNode) for part in node.value):
        return f"[{', '.join(map(_text, node.value))}]"
    whole = kind in _SCALARS and node.value.encode(errors="ignore").decode() == node.value  # no half characters
    if not whole or not node.value:
        raise ValueError("holds a value that is neither number, text nor a list of them; correct it")
    return node.value
