"""What a sweep is asked for: the settings that all runs have, those that are drawn, and the seeds."""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import cleandoc
from itertools import islice, product
from pathlib import Path

from targetprop.experiments.config import SECTIONS, RunConfig
from targetprop.experiments.errors import CommandError
from targetprop.experiments.options import Option, convert, field_options, make_help, refusing
from targetprop.experiments.parser import build_config, choose, list_options, read_options
from targetprop.experiments.progress import say
from targetprop.experiments.values import read_file, read_values, split_words
from targetprop.settings import check_ranges, check_types
from targetprop.sweep.space import Choice, Range, read_space

USAGE = "targetprop sweep [CONFIG.yaml] [--seeds A..B] [--SETTING LOW..HIGH] [options]"
_CHOOSING = ("method", *(f"{name}.{section.key}" for name, section in SECTIONS.items() if section.key))
_FREE = ("data.root", "device", "checkpoint_minutes", "logger")  # may change between two calls
_CHECKED = 200  # combinations that are checked before anything trains
_TRIALS = 20


@dataclass(frozen=True)
class Request:
    """Trains with several seeds and settings, each run in a folder of its own, and compares the runs.

    Every setting of targetprop train, from CONFIG.yaml or as an option, may have a range: LOW..HIGH, LOW..HIGH:log for
    one that is searched evenly in logarithms, or choices with commas between them. With choices alone, every
    combination is trained with every seed. With a range, or with --trials, Optuna draws settings: a trial is a run with
    the first seed, the first trial has the configuration's own settings, and a trial that is worse than the median of
    the earlier ones after the same epoch is stopped (pruned). The best settings are then trained with the other seeds.

    Settings are judged by the last validation loss if the runs have held-out data (--data.validation), else by the last
    training loss, and never by the test set, whose accuracy the table shows.

    The same command goes on where an earlier call was stopped, by Ctrl-C too.

    Attributes:
        seeds: FIRST..LAST, or seeds with commas between them; null is the configuration's own.
        trials: how many settings Optuna draws; null is 20 where a setting has a range.
        jobs: runs at a time, each a process with one thread.
        out: folder of the runs; null is sweeps/NAME after the configuration.
    """

    seeds: str | None = None
    trials: int | None = None
    jobs: int = 1
    out: str | None = None

    def __post_init__(self) -> None:
        """Check the request; a wrong one raises `ValueError`."""
        check_types(self, "--")
        check_ranges(
            self, "--",
            trials=(self.trials is None or self.trials >= 1, "a whole number ≥ 1"),
            jobs=(self.jobs >= 1, "a whole number ≥ 1"),
        )  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """What is to be trained."""

    values: Mapping[str, str]  # what all runs have, as texts by dotted name
    space: Mapping[str, Range | Choice]
    first: Mapping[str, str]  # what the configuration itself has for what is drawn
    seeds: list[int]
    trials: int | None  # None: every combination of the choices
    jobs: int
    out: Path
    epochs: int  # of a run, for the progress that is shown

    @property
    def about(self) -> dict[str, str]:
        """Say what must be the same in a call that goes on."""
        fixed = {name: text for name, text in self.values.items() if name not in _FREE}
        drawn = {name: str(part) for name, part in self.space.items()}
        return fixed | drawn | {"first seed": str(self.seeds[0]), "by trials": str(self.trials is not None)}

    def combinations(self) -> list[dict[str, str]]:
        """List the choices in all combinations."""
        return list(_combine({name: part.values for name, part in self.space.items() if isinstance(part, Choice)}))


def read_sweep(argv: list[str]) -> Sweep:
    """Read the command line; where help was asked for, print it and end with `SystemExit`."""
    own = {option.name: option for option in field_options(Request)}
    if argv and not argv[0].startswith("-"):
        argv = [f"--config={argv[0]}", *argv[1:]]
    given = split_words(argv, "targetprop sweep", ["network.layers"])
    if "help" in given.flags:
        sys.stdout.write(_format_help(list(own.values())))
        raise SystemExit(0)
    for name in ("print_config", "resume"):
        if name in (*given.flags, *given.values):
            raise CommandError(f"targetprop sweep has no option --{name}, which is of targetprop train; leave it out")
    line = read_options(argv)
    for note in line.notes:
        say(f"note: {note}")
    with refusing(own):
        request = Request(**convert({name: line.values.pop(name) for name in own if name in line.values}, own))
    if request.seeds is not None and line.values.pop("seed", None) and "seed" in given.values:
        raise CommandError("--seed and --seeds cannot both be given; leave one of them out")
    file = given.values.get("config")
    return _plan(request, *_split(line.values), file)


def _plan(request: Request, values: dict[str, str], space: dict[str, Range | Choice], file: str | None) -> Sweep:
    if "seed" in space:
        raise CommandError("--seed takes one number; give --seeds for several")
    if request.trials is not None and not space:
        raise CommandError("--trials needs a setting with a range, such as --optimizer.lr 1e-4..1e-2:log")
    searched = request.trials is not None or any(isinstance(part, Range) for part in space.values())
    config = _check(values, space)
    first = read_values(config.to_yaml()) | (read_file(file) if file else {})
    out = request.out or f"sweeps/{Path(file).stem if file else f'{config.method.name}-{config.data.name}'}"
    return Sweep(
        values={name: text for name, text in values.items() if name != "seed"},
        space=space,
        first={name: first[name] for name in space if name in first},
        seeds=[config.loop.seed] if request.seeds is None else read_seeds(request.seeds),
        trials=(request.trials or _TRIALS) if searched else None,
        jobs=request.jobs,
        out=Path(out).expanduser(),
        epochs=config.loop.epochs,
    )


def read_seeds(text: str) -> list[int]:
    """Read seeds.

    >>> read_seeds("0..2"), read_seeds("1,5")
    ([0, 1, 2], [1, 5])
    """
    found = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    words = text.strip("[]").replace(",", " ").split()
    if found and int(found[1]) <= int(found[2]) < int(found[1]) + 10_000:
        return list(range(int(found[1]), int(found[2]) + 1))
    if found or not words or not all(word.isdecimal() for word in words):
        raise CommandError(f"--seeds must be FIRST..LAST or whole numbers with commas between them; got {text!r}")
    return list(dict.fromkeys(map(int, words)))


def _split(given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, Range | Choice]]:
    """Tell settings with one value from those that are drawn."""
    choosing = {name: read_space(name, given[name], str) for name in _CHOOSING if name in given}
    classes = {name: part.values for name, part in choosing.items() if isinstance(part, Choice)}
    options: dict[str, Option] = {}
    for combination in _combine(classes):
        options |= list_options(*choose({**given, **combination}))
    values, space = {}, {}
    for name, text in given.items():
        part = read_space(name, text, options[name].kind if name in options and name not in _CHOOSING else str)
        if part is None:
            values[name] = text
        else:
            space[name] = part
    return values, space


def _check(values: Mapping[str, str], space: Mapping[str, Range | Choice]) -> RunConfig:
    """Build configurations at both ends of all ranges, so that what is wrong is found before anything trains.

    Returns the one with the first choices and no ranges.
    """
    choices = {name: part.values for name, part in space.items() if isinstance(part, Choice)}
    ranges = {name: part for name, part in space.items() if isinstance(part, Range)}
    combinations = list(islice(_combine(choices), _CHECKED))
    for combination in combinations:
        for end in ("low", "high"):
            build_config({**values, **combination, **{n: str(getattr(part, end)) for n, part in ranges.items()}})
    return build_config({**values, **combinations[0]})


def _combine(choices: Mapping[str, tuple[str, ...]]) -> Iterator[dict[str, str]]:
    return (dict(zip(choices, values, strict=True)) for values in product(*choices.values()))


def _format_help(own: list[Option]) -> str:
    description = cleandoc(Request.__doc__ or "").partition("\n\nAttributes:")[0]
    notes = "targetprop train --help lists the settings; those of a method or class with --method NAME and the like."
    return make_help(USAGE, f"{description}\n\n{notes}", {"": own})
