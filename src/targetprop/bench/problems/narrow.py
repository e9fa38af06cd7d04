"""A deep narrow tanh classifier, where exact inverses blow up."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from targetprop.bench.losses import SoftmaxCrossEntropy
from targetprop.bench.problems.problem import Problem, Task, accuracy, dense, images
from targetprop.experiments.networks import MOST_LAYERS
from targetprop.settings import check_ranges


@dataclass(frozen=True)
class Narrow(Problem):
    """Hidden layers of equal width on MNIST, or on the embedded digits where no folder is given.

    Attributes:
        depth: hidden layers.
        width: units in each.
    """

    batch: int = 200
    depth: int = 16
    width: int = 48
    name: ClassVar[str] = "narrow"

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        check_ranges(
            self,
            depth=(1 <= self.depth <= MOST_LAYERS, f"a whole number from 1 to {MOST_LAYERS}"),
            width=(self.width >= 1, "a whole number ≥ 1"),
        )  # fmt: skip

    def network(self, seed: int) -> nn.Sequential:
        """Build the classifier; see `Problem.network`."""
        pixels = 64 if self.root is None else 784
        return dense([pixels, *[self.width] * self.depth, 10], seed)

    def load(self) -> Task:
        """Flatten the images; see `Problem.load`."""
        data = images(self.root)
        x, test = data.train_x.flatten(1), data.test_x.flatten(1)
        return Task(x, data.train_y, test, data.test_y, SoftmaxCrossEntropy(), {"accuracy": accuracy})
