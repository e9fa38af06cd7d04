"""What every data source delivers: checked tensors of inputs and labels, split into training and test."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from targetprop.experiments.errors import FAILURE, CommandError


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled data set in memory.

    Attributes:
        train_x: training inputs, shape ``(n, channels, height, width)``, in [0, 1].
        train_y: training labels, shape ``(n,)``, in ``0 … classes − 1``.
        test_x: test inputs.
        test_y: test labels.
        classes: number of classes.
        where: where it came from, for messages.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    where: str

    def __post_init__(self) -> None:
        """Check values, shapes and labels.

        Raises:
            CommandError: something is wrong with the data.
        """
        for part, x, y in (("training", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            if len(x) == 0 or len(x) != len(y):
                problem = f"has {len(x)} {part} inputs and {len(y)} labels; both must be the same number above 0"
                raise CommandError(f"{self.where} {problem}", FAILURE)
            if not torch.isfinite(x).all():
                raise CommandError(f"{self.where} has NaN or infinite {part} inputs; clean the data first", FAILURE)
            low, high = int(y.min()), int(y.max())
            if low < 0 or high >= self.classes:
                problem = f"has {part} labels {low}…{high}, outside 0…{self.classes - 1}; correct the label file"
                raise CommandError(f"{self.where} {problem}", FAILURE)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.train_x.shape[1:])

    def to(self, device: torch.device) -> "Dataset":
        """Move all tensors.

        Args:
            device: where to.

        Returns:
            The data set there.
        """
        names = ("train_x", "train_y", "test_x", "test_y")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True)
class Source(ABC):
    """Settings of a data source."""

    name: ClassVar[str]

    @abstractmethod
    def load(self) -> Dataset:
        """Read the data.

        Returns:
            The data set, on the CPU.

        Raises:
            CommandError: files are missing or damaged.
        """


def stratified_split(y: Tensor, share: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split indices so that every class has the same share on both sides.

    Args:
        y: labels, shape ``(n,)``; every class needs at least two samples.
        share: share of the second side, which gets at least one sample of each class.
        seed: seed of the shuffling.

    Returns:
        Indices of both sides, ascending.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = [], []
    for label in y.unique():
        indices = torch.nonzero(y == label).flatten()
        indices = indices[torch.randperm(len(indices), generator=generator)]
        cut = max(1, round(share * len(indices)))
        second.append(indices[:cut])
        first.append(indices[cut:])
    return torch.cat(first).sort().values, torch.cat(second).sort().values
