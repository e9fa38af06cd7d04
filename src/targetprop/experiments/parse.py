"""From arguments to a configuration: choose method and classes first, then parse exactly the options they have."""

import re
from argparse import SUPPRESS, ArgumentDefaultsHelpFormatter
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentError, ArgumentParser

from targetprop.experiments.arguments import Arguments
from targetprop.experiments.config import (
    PARTS,
    SECTIONS,
    RunConfig,
    assemble,
    base_method,
    choose_sections,
    has_parts,
    list_options,
)
from targetprop.experiments.errors import CommandError
from targetprop.experiments.nested_file import SPECIAL
from targetprop.experiments.number_range import check_numbers
from targetprop.experiments.options import Option
from targetprop.methods import Method

_TITLES = {
    "output_target": "target of the output",
    "decoder": "approximate inverses",
    "inversion": "inversion of a layer",
    "influence": "influence normalisation",
    "update": "change of the weights",
    "data": "data",
    "network": "network",
    "optimizer": "optimiser of the network",
    "schedule": "its learning rate over the steps",
}


def parse_config(arguments: Arguments) -> RunConfig:
    """Check the arguments and make the configuration."""
    recipe = base_method(arguments.values)
    sections = choose_sections(recipe, arguments.values)
    options = list_options(recipe, sections)
    for name in arguments.values:
        if name not in options:
            _refuse(name, recipe, sections, options)
    plain = {n: text for n, text in arguments.values.items() if options[n].is_text}
    texts = {n: text for n, text in arguments.values.items() if n not in plain}
    texts = {
        n: _bracketed(text) if options[n].is_list else SPECIAL.get(text.lower(), text) for n, text in texts.items()
    }
    try:
        parsed = _parser(options).parse_args([f"--{name}={text}" for name, text in texts.items()])
    except ArgumentError as error:
        _explain(error, arguments.values, options)
    values = {name: option.coerce(parsed[name]) for name, option in options.items()}
    values |= {n: None if text == "null" and options[n].kind is not str else text for n, text in plain.items()}
    check_numbers(values)
    return assemble(recipe, sections, values)


def format_help(arguments: Arguments) -> str:
    """Describe every option that a run with these arguments has."""
    recipe = base_method(arguments.values)
    parser = _parser(list_options(recipe, choose_sections(recipe, arguments.values)))
    group = parser.add_argument_group("configuration files and earlier runs")
    group.add_argument("--config", metavar="FILE", default=SUPPRESS, help="YAML file of options; the command line wins")
    group.add_argument(
        "--print_config", action="store_true", default=SUPPRESS, help="print the complete configuration and exit"
    )
    group.add_argument(
        "--resume", metavar="RUN", default=SUPPRESS, help="go on with a run; only --epochs and --device fit beside it"
    )
    return parser.format_help()


def _parser(options: Mapping[str, Option]) -> ArgumentParser:
    parser = ArgumentParser(
        prog="targetprop train",
        usage="targetprop train [--config FILE] [options]",
        description="Train a network and keep the run in a folder. The options shown are those of the chosen method and"
        " classes; --method NAME --help shows another's.",
        formatter_class=ArgumentDefaultsHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
        default_env=False,
    )
    groups = {section: parser.add_argument_group(title) for section, title in _TITLES.items()}
    for option in options.values():
        place = groups.get(option.name.partition(".")[0], parser)
        extra: dict[str, Any] = {} if option.metavar is None else {"metavar": option.metavar}
        text = option.help.replace("%", "%%")
        place.add_argument(f"--{option.name}", type=option.kind, default=option.default, help=text, **extra)
    return parser


def _bracketed(text: str) -> str:
    return text if text.startswith("[") else f"[{text}]"


def _refuse(name: str, recipe: Method, sections: Mapping[str, Any], options: Mapping[str, Option]) -> NoReturn:
    section = name.partition(".")[0]
    if section in (*PARTS, "cut", "propagation") and not has_parts(recipe):
        raise CommandError(f"--{name} does not fit method {recipe.name!r}, which has no parts to set; leave it out")
    close = get_close_matches(name, options, n=1, cutoff=0.8)
    if section not in sections:
        hint = f"did you mean --{close[0]}?" if close else "targetprop train --help lists the options"
        raise CommandError(f"unknown option --{name}; {hint}")
    kind, own = SECTIONS[section], [f"--{option}" for option in options if option.startswith(f"{section}.")]
    if kind is None or name == section:
        raise CommandError(f"unknown option --{name}; the options of {section} are {', '.join(own)}")
    others = [k for k, c in kind.classes.items() if name.partition(".")[2] in {f.name for f in fields(c)}]
    having = f"; --{section}.{kind.key} {' or '.join(others)} has it" if others else ""
    message = f"{section} {sections[section].name!r} has no option --{name}; its options are {', '.join(own)}{having}"
    raise CommandError(message)


def _explain(error: ArgumentError, given: Mapping[str, str], options: Mapping[str, Option]) -> NoReturn:
    found = re.search(r'Parser key "([^"]+)"', str(error))
    if found is None or found[1] not in options:
        raise CommandError(f"{error}; targetprop train --help lists the options")
    option = options[found[1]]
    raise CommandError(f"--{option.name} must be {option.meaning}; got {given.get(option.name)!r}")
