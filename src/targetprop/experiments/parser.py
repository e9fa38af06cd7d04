"""The options of ``targetprop train``: method and classes are chosen first, then exactly the options they have."""

from argparse import SUPPRESS
from collections.abc import Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any, Literal, NoReturn, get_args

from targetprop.experiments.config import PARTS, SECTIONS, RunConfig, has_parts
from targetprop.experiments.errors import CommandError, suggest
from targetprop.experiments.networks import OwnModel
from targetprop.experiments.options import Option, convert, field_options, make_help, refusing
from targetprop.experiments.values import Options, read_file, split_words
from targetprop.experiments.wanted import wanted
from targetprop.layers import Cut
from targetprop.methods import METHODS, method
from targetprop.recipe import Method
from targetprop.targets import Propagation

_OF_METHOD = ("cut", "propagation", *PARTS)
_WAYS = tuple(way for way in get_args(Propagation) if way != "backprop")
_FILES = [
    Option("config", str, SUPPRESS, "YAML file of options; the command line wins"),
    Option("print_config", None, SUPPRESS, "print the complete configuration and exit"),
    Option("resume", str, SUPPRESS, "folder of a run that goes on; only --epochs, --device and --logger fit beside it"),
]


def read_options(argv: list[str]) -> Options:
    """Read the command line and the file that it names.

    Where the command line chooses another method, or another class of a section, than the file has, the file's settings
    of what was replaced are left out, and a note says so; those of the optimiser too, where another one is wanted then.
    """
    line = split_words(argv, "targetprop train", ["network.layers"])
    for name in ("config", "resume"):
        if line.values.get(name) == "":
            raise CommandError(f"--{name} needs a value")
    if "config" not in line.values or "resume" in line.values:
        return line
    file = read_file(line.values.pop("config"))
    recipe, sections = choose(file)
    chosen = {"method": recipe.name} | {f"{n}.{SECTIONS[n].key}": getattr(s, "name", "") for n, s in sections.items()}
    for switch, old in chosen.items():
        new = line.values.get(switch, old)
        inside = _OF_METHOD if switch == "method" else switch.split(".")[:1]
        lost = [name for name in file if new != old and name.partition(".")[0] in inside]
        if set(lost) - {switch}:
            line.notes.append(f"--{switch} {new} replaces the file's choice, so its {', '.join(lost)} are left out")
        file = {name: text for name, text in file.items() if name not in lost}
    now, _ = choose(file | line.values)
    lost = [name for name in file if name.partition(".")[0] in ("optimizer", "schedule")]
    if lost and _wanted(now, file | line.values) != _wanted(recipe, chosen):
        line.notes.append(f"the chosen update wants another optimiser, so the file's {', '.join(lost)} are left out")
        file = {name: text for name, text in file.items() if name not in lost}
    line.values = file | line.values
    return line


def _wanted(recipe: Method, values: Mapping[str, str]) -> dict[str, Any]:
    return wanted(recipe.name, values.get("update.rule", recipe.update.name))


def build_config(values: Mapping[str, str]) -> RunConfig:
    """Check texts by dotted name and make the configuration."""
    recipe, sections = choose(values)
    options = list_options(recipe, sections)
    for name in values:
        if name not in options:
            _refuse(name, recipe, sections, options)
    if values.get("propagation") == "backprop":
        raise CommandError(f"--propagation must be one of {', '.join(_WAYS)}; got 'backprop', which is a --method")
    given = convert(values, options)
    made = {name: _replaced(name, part, given) for name, part in sections.items()}
    of_method = {name: made.pop(name, given.get(name)) for name in _OF_METHOD if name in made or name in given}
    with refusing(("cut", "propagation")):
        return RunConfig(replace(recipe, **of_method), out=given.get("out"), **made)


def format_help(values: Mapping[str, str]) -> str:
    """Describe every option that a run with these values has."""
    description = (
        "Train a network and keep the run in a folder. The options shown are those of the chosen method and classes;"
        " --method NAME --help shows another's."
    )
    groups = _group(*choose(values)) | {"configuration files and earlier runs": _FILES}
    return make_help("targetprop train [--config FILE] [options]", description, groups)


def choose(values: Mapping[str, str]) -> tuple[Method, dict[str, Any]]:
    """Choose the method and the class of every section, with their default settings."""
    name = values.get("method", "l-drl")
    if name not in METHODS:
        raise CommandError(f"unknown method {name!r}; {suggest(name, METHODS)} (targetprop methods describes them)")
    recipe = method(name)
    sections = RunConfig(recipe).sections | _wanted(recipe, values)
    for section, default in sections.items():
        _, key, classes, _ = SECTIONS[section]
        name = values.get(f"{section}.{key}") if key else None
        if name is not None and section == "network" and ":" in name:
            sections[section] = OwnModel(name)
            continue
        if name is not None and name not in classes:
            own = " A model of your own is FILE:NAME, such as nets.py:net" if section == "network" else ""
            raise CommandError(f"unknown --{section}.{key} {name!r}; {suggest(name, classes)}{own}")
        if name is not None and name != default.name:
            sections[section] = classes[name]()
    return recipe, sections


def list_options(recipe: Method, sections: Mapping[str, Any]) -> dict[str, Option]:
    """List the options of a run by name."""
    return {option.name: option for group in _group(recipe, sections).values() for option in group}


def _group(recipe: Method, sections: Mapping[str, Any]) -> dict[str, list[Option]]:
    """List the options of a run by the title of their group."""
    groups = {"": [Option("method", Literal[tuple(METHODS)], recipe.name, "the recipe; see targetprop methods")]}
    if has_parts(recipe):
        groups[""] += [
            Option("cut", Cut, recipe.cut, "where the network is cut into layers"),
            Option("propagation", Literal[_WAYS], recipe.propagation, "the order in which targets travel down"),
        ]
    for name, settings in sections.items():
        title, key, classes, text = SECTIONS[name]
        group = groups.setdefault(title, [])
        if key:
            group.append(Option(f"{name}.{key}", Literal[tuple(classes)], settings.name, text))
        group += [option for option in field_options(settings, _prefix(name)) if option.name != f"{name}.{key}"]
    groups[""].append(Option("out", str | None, None, "the run's new folder; null is runs/METHOD-DATA-sSEED"))
    return groups


def _prefix(section: str) -> str:
    return f"{section}." if SECTIONS[section].title else ""


def _replaced(section: str, settings: Any, given: Mapping[str, Any]) -> Any:
    prefix, names = _prefix(section), [f.name for f in fields(settings) if f.name != SECTIONS[section].key]
    with refusing(names, prefix):
        return replace(settings, **{name: given[prefix + name] for name in names if prefix + name in given})


def _refuse(name: str, recipe: Method, sections: Mapping[str, Any], options: Mapping[str, Option]) -> NoReturn:
    section, _, leaf = name.partition(".")
    if section in _OF_METHOD and not has_parts(recipe):
        raise CommandError(f"--{name} does not fit method {recipe.name!r}, which has no parts to set; leave it out")
    own = [f"--{option}" for option in options if option.startswith(f"{section}.")]
    if own:
        _, key, classes, _ = SECTIONS[section]
        others = [choice for choice, kind in classes.items() if leaf in {f.name for f in fields(kind)}]
        having = f"; --{section}.{key} {' or '.join(others)} has it" if others else ""
        title = f"{section} {sections[section].name!r}" if key else section
        raise CommandError(f"{title} has no option --{name}; its options are {', '.join(own)}{having}")
    own = name.replace("-", "_").replace("learning_rate", "lr")
    close = [option for option in options if f".{option}".endswith(f".{own}")]
    close = close or get_close_matches(name, options, 1, 0.8)
    hint = f"did you mean --{' or --'.join(close)}?" if close else "targetprop train --help lists the options"
    raise CommandError(f"unknown option --{name}; {hint}")
