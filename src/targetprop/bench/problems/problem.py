"""What a problem is: a network from a seed, data in memory, a loss, and further measures."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from targetprop.bench.losses import SampledLoss
from targetprop.experiments.data import Dataset, Digits, Mnist
from targetprop.experiments.errors import CommandError
from targetprop.experiments.schedules import Linear
from targetprop.settings import check_ranges, check_types

Measure = Callable[[Tensor, Tensor], Tensor]
_PIECE = 2000  # samples that are evaluated at once


@dataclass(frozen=True, eq=False)
class Task:
    """Data and loss of a problem."""

    x: Tensor  # training inputs, shape ``(n, d)``
    y: Tensor  # what the loss compares the output with
    test_x: Tensor
    test_y: Tensor
    loss: SampledLoss
    measures: Mapping[str, Measure]  # further means over samples, by name, of output and ``y``

    def to(self, device: str) -> Self:
        """Put the data on a device."""
        if device == "cuda" and not torch.cuda.is_available():
            raise CommandError("--device cuda: there is no GPU that PyTorch can use; leave it out")
        data = {name: getattr(self, name).to(device) for name in ("x", "y", "test_x", "test_y")}
        return replace(self, **data)

    def batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw batches without end, every sample once per epoch."""
        generator = torch.Generator().manual_seed(seed)
        size = min(size, len(self.x))
        while True:
            order = torch.randperm(len(self.x), generator=generator)[: len(self.x) // size * size]
            for rows in order.split(size):
                yield self.x[rows], self.y[rows]

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Measure on all data."""
        measures = {"loss": self.loss, **self.measures}
        found = {}
        for part, x, y in (("train", self.x, self.y), ("test", self.test_x, self.test_y)):
            totals = dict.fromkeys(measures, 0.0)
            with torch.no_grad():
                for inputs, labels in zip(x.split(_PIECE), y.split(_PIECE), strict=True):
                    output = network(inputs)
                    for name, measure in measures.items():
                        totals[name] += float(measure(output, labels)) * len(inputs) / len(x)
            found |= {f"{part} {name}": total for name, total in totals.items()}
        return found


@dataclass(frozen=True)
class Problem(ABC):
    """Settings of a problem.

    Attributes:
        steps: steps of a full run.
        batch: samples per step.
        warmup: share of the steps in which the learning rate rises; it falls to 0 in a line after that.
        weight_decay: share of the weights that each step at rate 1 takes away, the same for all competitors.
        root: folder that holds MNIST; null where the problem needs no files, or takes the embedded digits instead.
        device: where data and network are.
    """

    steps: int = 1000
    batch: int = 500
    warmup: float = 0.05
    weight_decay: float = 0.0
    root: str | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        check_types(self)
        check_ranges(
            self,
            steps=(self.steps >= 1, "a whole number ≥ 1"),
            batch=(self.batch >= 1, "a whole number ≥ 1"),
            warmup=(0 <= self.warmup < 1, "a share of the steps in [0, 1)"),
            weight_decay=(self.weight_decay >= 0, "a number ≥ 0"),
        )  # fmt: skip

    @property
    def schedule(self) -> Linear:
        """How every competitor's learning rate changes."""
        return Linear(self.warmup)

    @abstractmethod
    def network(self, seed: int) -> nn.Module:
        """Build the network."""

    @abstractmethod
    def load(self) -> Task:
        """Read or make the data."""


def dense(widths: Sequence[int], seed: int, linear: Sequence[int] = ()) -> nn.Sequential:
    """Build a tanh network with Glorot-uniform weights and zero biases.

    >>> [type(m).__name__ for m in dense([3, 4, 2, 1], 0, linear=[2])]
    ['Linear', 'Tanh', 'Linear', 'Linear']
    """
    generator = torch.Generator().manual_seed(seed)
    modules: list[nn.Module] = []
    for place, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True), start=1):
        layer = nn.Linear(inputs, outputs)
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
        modules += [layer] if place in (*linear, len(widths) - 1) else [layer, nn.Tanh()]
    return nn.Sequential(*modules)


def accuracy(output: Tensor, y: Tensor) -> Tensor:
    """Compute the share of right answers."""
    return (output.argmax(-1) == y).float().mean()


def images(root: str | None) -> Dataset:
    """Load MNIST, or the embedded digits."""
    if root is None:
        return Digits().load()
    if not Path(root).expanduser().is_dir():
        raise CommandError(f"--root {root} is not a folder; give the one that holds MNIST's files")
    return Mnist(root=root).load()
