"""A deep narrow tanh classifier, where exact inverses blow up."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from targetprop.bench.losses import SoftmaxCrossEntropy
from targetprop.bench.problems.problem import Problem, Task, dense, images


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
        """Check the settings.

        Raises:
            ValueError: a setting is out of its range.
        """
        super().__post_init__()
        if self.depth < 1 or self.width < 1:
            raise ValueError(f"depth and width must be whole numbers ≥ 1; got {self.depth} and {self.width}")

    def network(self, seed: int) -> nn.Sequential:
        """Build the classifier; see `Problem.network`."""
        pixels = 64 if self.root is None else 784
        return dense([pixels, *[self.width] * self.depth, 10], seed)

    def load(self) -> Task:
        """Flatten the images; see `Problem.load`."""
        data = images(self.root)
        x, test = data.train_x.flatten(1), data.test_x.flatten(1)
        return Task(x, data.train_y, test, data.test_y, SoftmaxCrossEntropy(), {"accuracy": accuracy})


def accuracy(output: Tensor, y: Tensor) -> Tensor:
    """Compute the share of right answers.

    Args:
        output: logits.
        y: labels.

    Returns:
        The share.
    """
    return (output.argmax(1) == y).float().mean()
