"""What every data source delivers: checked tensors of inputs and labels, split into training and test."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from targetprop.experiments.data.augment import Augmentation
from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.settings import check_ranges, check_types


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled data set in memory."""

    train_x: Tensor  # shape (n, channels, height, width), in [0, 1] unless normalised
    train_y: Tensor  # shape (n,), in 0 … classes − 1
    test_x: Tensor
    test_y: Tensor
    classes: int
    where: str  # where it came from, for messages
    augmentation: Augmentation = field(default_factory=Augmentation)
    validation_x: Tensor | None = None  # held out of the training samples; None if nothing is
    validation_y: Tensor | None = None

    def __post_init__(self) -> None:
        """Check values, shapes and labels."""
        for part, x, y in (("training", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            if len(x) == 0 or len(x) != len(y):
                problem = f"has {len(x)} {part} inputs and {len(y)} labels; both must be the same number above 0"
                raise CommandError(f"{self.where} {problem}", FAILURE)
            if not torch.stack(x.aminmax()).isfinite().all():
                raise CommandError(f"{self.where} has NaN or infinite {part} inputs; clean the data first", FAILURE)
            low, high = int(y.min()), int(y.max())
            if low < 0 or high >= self.classes:
                problem = f"has {part} labels {low}…{high}, outside 0…{self.classes - 1}; correct the label file"
                raise CommandError(f"{self.where} {problem}", FAILURE)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.train_x.shape[1:])

    def limited(self, samples: int) -> "Dataset":
        """Keep some of the training samples, evenly spread over all of them."""
        n = len(self.train_x)
        chosen = torch.arange(min(samples, n)) * n // min(samples, n)
        return replace(self, train_x=self.train_x[chosen], train_y=self.train_y[chosen])

    def holding_out(self, share: float) -> "Dataset":
        """Hold a share of every class's training samples out."""
        kept, held = stratified_split(self.train_y, share)
        x, y = self.train_x, self.train_y
        return replace(self, train_x=x[kept], train_y=y[kept], validation_x=x[held], validation_y=y[held])

    def normalised(self) -> "Dataset":
        """Shift and scale every channel to mean 0 and variance 1 over the training set."""
        std, mean = torch.std_mean(self.train_x, (0, 2, 3), correction=0, keepdim=True)
        scale = torch.where(std > 1e-6, std, torch.ones_like(std))
        return self.with_inputs(lambda x: (x - mean).div_(scale))

    def to(self, device: torch.device) -> "Dataset":
        """Move all tensors."""
        if self.train_x.device == device:
            return self
        labels = {"train_y": self.train_y, "test_y": self.test_y, "validation_y": self.validation_y}
        moved = {name: None if y is None else y.to(device) for name, y in labels.items()}
        return replace(self.with_inputs(lambda x: x.to(device)), **moved)

    def with_inputs(self, change: Callable[[Tensor], Tensor]) -> "Dataset":
        """Change the inputs of all parts."""
        held = None if self.validation_x is None else change(self.validation_x)
        return replace(self, train_x=change(self.train_x), test_x=change(self.test_x), validation_x=held)


@dataclass(frozen=True)
class Source(ABC):
    """Settings of a data source.

    Attributes:
        limit: number of training samples to use, evenly spread over all of them; null is all.
        validation: share of the training samples that is held out, in [0, 1): to choose settings by, as sweep does.
        normalise: whether to bring every channel to mean 0 and variance 1 over the training set.
        crop: training images are padded by this many pixels and cut back to size at a random place; 0 leaves them.
        flip: whether each training image is mirrored left to right with probability ½.
    """

    limit: int | None = None
    validation: float = 0.0
    normalise: bool = False
    crop: int = 0
    flip: bool = False
    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        check_types(self, "data.")
        check_ranges(
            self, "data.",
            limit=(self.limit is None or self.limit >= 1, "null or a whole number ≥ 1"),
            crop=(self.crop >= 0, "a whole number ≥ 0"),
            validation=(0 <= self.validation < 1, "a share in [0, 1)"),
        )  # fmt: skip

    def load(self) -> Dataset:
        """Read the data and prepare it as the settings say."""
        data = self.read()
        if self.limit is not None:
            data = data.limited(self.limit)
        if self.validation:
            data = data.holding_out(self.validation)
        if self.normalise:
            data = data.normalised()
        return replace(data, augmentation=Augmentation(self.crop, self.flip))

    @abstractmethod
    def read(self) -> Dataset:
        """Read the data as it is."""


def stratified_split(y: Tensor, fraction: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split indices so that every class has this fraction in the second part."""
    generator = torch.Generator().manual_seed(seed)
    first, second = [], []
    for label in y.unique():
        indices = torch.nonzero(y == label).flatten()
        indices = indices[torch.randperm(len(indices), generator=generator)]
        cut = max(1, round(fraction * len(indices)))
        second.append(indices[:cut])
        first.append(indices[cut:])
    return torch.cat(first).sort().values, torch.cat(second).sort().values
