"""The ``targetprop`` command: finds the subcommand and turns errors into sentences and exit statuses."""

import sys
from collections.abc import Sequence
from importlib import import_module

import targetprop
from targetprop.experiments.errors import FAILURE, USAGE, CommandError, suggest
from targetprop.experiments.output import deliver
from targetprop.runs.errors import RunError

# name -> (module that holds a function of the same name, what it does)
COMMANDS = {
    "train": ("targetprop.experiments.train", "train a network and keep the run in a folder"),
    "inspect": ("targetprop.experiments.inspect", "measure a trained run's inverses and targets; says what to change"),
    "compare": ("targetprop.experiments.compare", "show runs side by side; writes a table, a figure and a page"),
    "sweep": ("targetprop.sweep.command", "train with several seeds and settings, the best of them found by Optuna"),
    "verify": ("targetprop.claims.verify", "measure the claims of the paper; writes a table, figures and a page"),
    "bench": ("targetprop.bench.command", "compare optimisers, tuned on an equal budget"),
    "check": ("targetprop.experiments.check", "say what a method does with a model of your own, layer by layer"),
    "methods": ("targetprop.experiments.list_methods", "list the methods and their parts"),
}
_USAGE = """usage: targetprop COMMAND [options]

Target propagation by iterating approximate inverses.

commands:
{commands}
targetprop COMMAND --help lists the options of a command.
"""
_EXTRAS = {
    **dict.fromkeys(("jsonargparse", "matplotlib", "PIL", "yaml", "rich", "safetensors", "sklearn"), "experiments"),
    "optuna": "experiments,sweep",
    "pytorch_optimizer": "experiments,bench",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return deliver(lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    try:
        return _dispatch(arguments)
    except (CommandError, RunError) as error:
        sys.stderr.write(f"targetprop: {error}\n")
        return error.status
    except SystemExit as end:  # a command that has printed its help
        return int(end.code or 0)
    except KeyboardInterrupt:
        sys.stderr.write("targetprop: stopped by Ctrl-C\n")
        return 130


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        commands = "".join(f"  {name:<10} {text}\n" for name, (_, text) in COMMANDS.items())
        sys.stdout.write(_USAGE.format(commands=commands))
        return 0 if arguments else USAGE
    if name == "--version":
        sys.stdout.write(f"targetprop {targetprop.__version__}\n")
        return 0
    if name not in COMMANDS:
        raise CommandError(f"unknown command {name!r}; {suggest(name, COMMANDS)}")
    try:
        command = getattr(import_module(COMMANDS[name][0]), name)
        return command(arguments[1:])
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise CommandError(
            f"this command needs {error.name}, which is not installed; run pip install 'targetprop[{extra}]'",
            FAILURE,
        ) from error
