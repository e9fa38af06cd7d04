"""A run's configuration: which sections it has, what each may be, and how a flat set of values becomes one.

Every section but ``influence`` is an object of a class chosen by name (``--inversion.rule``); the options of the
section are the fields of that class. So an option that the chosen class lacks does not exist, and is refused.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

import yaml

from targetprop.decoders import OBJECTIVES
from targetprop.experiments.data import SOURCES, Digits, Source
from targetprop.experiments.errors import CommandError, suggest
from targetprop.experiments.loop import Precision
from targetprop.experiments.networks import NETWORKS, Dense, Network
from targetprop.experiments.optimizers import OPTIMIZERS, Adam, Optimizer
from targetprop.experiments.options import Option, field_options
from targetprop.experiments.schedules import SCHEDULES, Constant, Schedule
from targetprop.inversion import RULES
from targetprop.layers.chain import Cut
from targetprop.methods import METHODS, Method, method
from targetprop.output_target import OUTPUT_TARGETS
from targetprop.settings import check_ranges, check_types
from targetprop.targets import Propagation
from targetprop.updates import UPDATES


@dataclass(frozen=True)
class Kind:
    """How the class of a section is chosen.

    Attributes:
        key: name of the option that chooses it.
        classes: the classes by name.
        help: what the option chooses.
    """

    key: str
    classes: Mapping[str, type]
    help: str


PARTS: dict[str, Kind | None] = {
    "output_target": Kind("rule", OUTPUT_TARGETS, "how the target of the output is set"),
    "decoder": Kind("objective", OBJECTIVES, "what the approximate inverses learn"),
    "inversion": Kind("rule", RULES, "how a target is inverted into the one below"),
    "influence": None,
    "update": Kind("rule", UPDATES, "how a target becomes a change of the weights"),
}
SECTIONS: dict[str, Kind | None] = {
    **PARTS,
    "data": Kind("name", SOURCES, "where the data comes from"),
    "network": Kind("name", NETWORKS, "the network"),
    "optimizer": Kind("name", OPTIMIZERS, "the network's optimiser"),
    "schedule": Kind("name", SCHEDULES, "how its learning rate changes"),
}


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the training loop.

    Attributes:
        epochs: passes over the training data.
        batch_size: samples per step, dealt out to the processes if torchrun started several; the last batch of an epoch
            may be smaller.
        seed: seed of the initial weights, the decoders, their noise and the order of the data.
        device: auto takes the GPU if there is one.
        log_every: steps between two measurements of the inversion residuals.
        max_skipped: steps in a row that may be skipped because their numbers are not finite; so many stop the run.
        precision: fp64 trains everything in float64. With bf16, products and activations are in bfloat16; weights,
            gradients, optimisers, the loss and differences of nearly equal activations stay in float32.
        checkpoint_minutes: minutes between two checkpoints within an epoch; every epoch ends with one in any case.
        compile: compile with torch.compile what layers and decoders compute while targets are sought; where that fails,
            a sentence says so.
        deterministic: use PyTorch's deterministic algorithms only, so that the same seed on the same machine gives the
            same result bit for bit on a GPU too; an operation that has none ends the run.
    """

    epochs: int = 30
    batch_size: int = 64
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    log_every: int = 50
    max_skipped: int = 10
    precision: Precision = "fp32"
    checkpoint_minutes: float = field(default=5.0, metadata={"finite": False})
    compile: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        check_types(self)
        check_ranges(
            self,
            epochs=(self.epochs >= 1, "a whole number ≥ 1"),
            batch_size=(self.batch_size >= 1, "a whole number ≥ 1"),
            seed=(0 <= self.seed < 2**63, "a whole number from 0 to 2**63 − 1"),
            log_every=(self.log_every >= 1, "a whole number ≥ 1"),
            max_skipped=(self.max_skipped >= 1, "a whole number ≥ 1"),
            checkpoint_minutes=(self.checkpoint_minutes >= 0, "a number ≥ 0"),
        )


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run.

    Attributes:
        method: the recipe.
        data: the data source.
        network: the network.
        optimizer: its optimiser.
        loop: settings of the loop.
        out: the run's folder; None makes one under ``runs``.
        schedule: how the learning rate changes.
    """

    method: Method
    data: Source
    network: Network
    optimizer: Optimizer
    loop: LoopSettings
    out: str | None = None
    schedule: Schedule = Constant()

    def __post_init__(self) -> None:
        """Check what the parts are; a wrong one raises `ValueError`."""
        check_types(self)

    def to_yaml(self) -> str:
        """Write it as the nested file that ``--config`` reads, without the folder."""
        sections = {name: getattr(self.method, name) for name in (PARTS if has_parts(self.method) else ())}
        sections |= {name: getattr(self, name) for name in SECTIONS if name not in PARTS}
        values: dict[str, Any] = {"method": self.method.name}
        if has_parts(self.method):
            values |= {"cut": self.method.cut, "propagation": self.method.propagation}
        for name, part in sections.items():
            kind = SECTIONS[name]
            values[name] = ({kind.key: part.name} if kind else {}) | {
                f.name: getattr(part, f.name) for f in fields(part)
            }
        values |= asdict(self.loop)
        return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def has_parts(recipe: Method) -> bool:
    """Tell target propagation from the baseline, which has no parts to set."""
    return recipe.propagation != "backprop"


def base_method(values: Mapping[str, str]) -> Method:
    """Find the method that the values name."""
    name = values.get("method", "iterated")
    if name not in METHODS:
        raise CommandError(f"unknown method {name!r}; {suggest(name, METHODS)} (targetprop methods describes them)")
    return method(name)


def default_sections(recipe: Method) -> dict[str, Any]:
    """List a method's own parts and the default data, network, optimiser and schedule, by section."""
    parts = {name: getattr(recipe, name) for name in (PARTS if has_parts(recipe) else ())}
    return parts | {"data": Digits(), "network": Dense(), "optimizer": Adam(), "schedule": Constant()}


def choose_sections(recipe: Method, values: Mapping[str, str]) -> dict[str, Any]:
    """Choose the class of every section, with its default settings."""
    chosen = default_sections(recipe)
    for section, default in chosen.items():
        kind = SECTIONS[section]
        name = values.get(f"{section}.{kind.key}") if kind else None
        if kind is None or name in (None, default.name):
            continue
        if name not in kind.classes:
            raise CommandError(f"unknown --{section}.{kind.key} {name!r}; {suggest(name, kind.classes)}")
        chosen[section] = kind.classes[name]()
    return chosen


def list_options(recipe: Method, sections: Mapping[str, Any]) -> dict[str, Option]:
    """List the options of a run by dotted name."""
    options = [Option("method", Literal[tuple(METHODS)], recipe.name, "the recipe; see targetprop methods")]
    if has_parts(recipe):
        ways = tuple(way for way in get_args(Propagation) if way != "backprop")
        options += [
            Option("cut", Cut, recipe.cut, "where the network is cut into layers"),
            Option("propagation", Literal[ways], recipe.propagation, "the order in which targets travel down"),
        ]
    for section, settings in sections.items():
        kind = SECTIONS[section]
        if kind is not None:
            choices = Literal[tuple(kind.classes)]
            options.append(Option(f"{section}.{kind.key}", choices, settings.name, kind.help))
        options += field_options(section, settings)
    options += field_options("", LoopSettings())
    options.append(Option("out", str | None, None, "the run's new folder; null is runs/METHOD-DATA-sSEED"))
    return {option.name: option for option in options}


def assemble(recipe: Method, sections: Mapping[str, Any], values: Mapping[str, Any]) -> RunConfig:
    """Put checked values into the sections."""
    try:
        made = {
            name: replace(old, **{f.name: values[f"{name}.{f.name}"] for f in fields(old)})
            for name, old in sections.items()
        }
        parts: dict[str, Any] = {name: made.pop(name) for name in PARTS if name in made}
        if has_parts(recipe):
            recipe = replace(recipe, cut=values["cut"], propagation=values["propagation"], **parts)
        loop = LoopSettings(**{f.name: values[f.name] for f in fields(LoopSettings)})
    except ValueError as error:
        raise CommandError(str(error)) from error
    return RunConfig(recipe, loop=loop, out=values["out"], **made)
