"""A run's configuration: settings in sections, each of a class that is chosen by name."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import yaml

from targetprop.decoders import OBJECTIVES
from targetprop.experiments.data import SOURCES, Digits, Source
from targetprop.experiments.loop import Precision
from targetprop.experiments.networks import NETWORKS, Dense, Network
from targetprop.experiments.optimizers import OPTIMIZERS, Adam, Optimizer
from targetprop.experiments.schedules import SCHEDULES, Constant, Schedule
from targetprop.inversion import RULES
from targetprop.output_target import OUTPUT_TARGETS
from targetprop.recipe import Method
from targetprop.settings import check_ranges, check_types
from targetprop.updates import UPDATES


class Section(NamedTuple):
    """A section: its title in the help, where top-level options have none; what chooses its class, and from which."""

    title: str = ""
    key: str = ""
    classes: Mapping[str, type] = {}
    help: str = ""


PARTS: dict[str, Section] = {
    "output_target": Section("target of the output", "rule", OUTPUT_TARGETS, "how the target of the output is set"),
    "decoder": Section("approximate inverses", "objective", OBJECTIVES, "what the approximate inverses learn"),
    "inversion": Section("inversion of a layer", "rule", RULES, "how a target is inverted into the one below"),
    "influence": Section("influence normalisation"),
    "update": Section("change of the weights", "rule", UPDATES, "how a target becomes a change of the weights"),
}
SECTIONS: dict[str, Section] = {
    **PARTS,
    "data": Section("data", "name", SOURCES, "where the data comes from"),
    "network": Section("network", "name", NETWORKS, "the network, or FILE:NAME, a model of your own"),
    "optimizer": Section("optimiser of the network", "name", OPTIMIZERS, "the network's optimiser"),
    "schedule": Section("its learning rate over the steps", "name", SCHEDULES, "how its learning rate changes"),
    "loop": Section(),
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
        logger: where metrics go beside metrics.jsonl: into a CSV file, TensorBoard's files, or to Weights & Biases;
            each is an extra of its name, as in pip install 'targetprop[csv]'.
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
    logger: Literal["none", "csv", "tensorboard", "wandb"] = "none"
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        check_types(self)
        counts = ("epochs", "batch_size", "log_every", "max_skipped")
        check_ranges(
            self,
            **{name: (getattr(self, name) >= 1, "a whole number ≥ 1") for name in counts},
            seed=(0 <= self.seed < 2**63, "a whole number from 0 to 2**63 − 1"),
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
    data: Source = Digits()
    network: Network = field(default_factory=Dense)
    optimizer: Optimizer = Adam()
    loop: LoopSettings = LoopSettings()
    out: str | None = None
    schedule: Schedule = Constant()

    def __post_init__(self) -> None:
        """Check what the parts are; a wrong one raises `ValueError`."""
        check_types(self)

    @property
    def sections(self) -> dict[str, Any]:
        """Settings by section; the baseline has no parts of a method."""
        parts = {name: getattr(self.method, name) for name in PARTS} if has_parts(self.method) else {}
        return parts | {name: getattr(self, name) for name in SECTIONS if name not in PARTS}

    def to_yaml(self) -> str:
        """Write it as the nested file that ``--config`` reads, without the folder."""
        values: dict[str, Any] = {"method": self.method.name}
        if has_parts(self.method):
            values |= {"cut": self.method.cut, "propagation": self.method.propagation}
        for name, part in self.sections.items():
            title, key, *_ = SECTIONS[name]
            settings = ({key: part.name} if key else {}) | asdict(part)
            values |= {name: settings} if title else settings
        return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def has_parts(recipe: Method) -> bool:
    """Tell target propagation from the baseline, which has no parts to set."""
    return recipe.propagation != "backprop"
