"""A recurrent classifier, which reads an image row by row: two of its three maps are used at every row."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from targetprop.bench.losses import SoftmaxCrossEntropy
from targetprop.bench.problems.problem import Problem, Task, accuracy, images
from targetprop.settings import check_ranges


class RowReader(nn.Module):
    """``h_t = tanh(W x_t + U h_{t−1} + b)`` over the rows of an image, and logits from the last state.

    Args:
        pixels: of a row.
        width: of the state.
        seed: of the weights: Glorot-uniform ones, an orthogonal ``U``.
    """

    def __init__(self, pixels: int, width: int, seed: int) -> None:
        """Make the maps."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.row, self.state, self.out = nn.Linear(pixels, width), nn.Linear(width, width), nn.Linear(width, 10)
        for map_ in (self.row, self.out):
            nn.init.xavier_uniform_(map_.weight, generator=generator)
        nn.init.orthogonal_(self.state.weight, generator=generator)
        for map_ in (self.row, self.state, self.out):
            nn.init.zeros_(map_.bias)

    def forward(self, rows: Tensor) -> Tensor:
        """Map images ``(n, rows, pixels)`` to logits ``(n, 10)``."""
        h = rows.new_zeros(len(rows), self.state.in_features)
        for x in rows.unbind(1):
            h = torch.tanh(self.row(x) + self.state(h))
        return self.out(h)


@dataclass(frozen=True)
class Recurrent(Problem):
    """MNIST, or the embedded digits where no folder is given, row by row.

    Attributes:
        width: units of the state.
    """

    batch: int = 128
    width: int = 64
    name: ClassVar[str] = "recurrent"

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        check_ranges(self, width=(self.width >= 1, "a whole number ≥ 1"))

    def network(self, seed: int) -> nn.Module:
        """Build the classifier; see `Problem.network`."""
        return RowReader(8 if self.root is None else 28, self.width, seed)

    def load(self) -> Task:
        """Give the images as sequences of rows; see `Problem.load`."""
        data = images(self.root)
        x, test = data.train_x.squeeze(1), data.test_x.squeeze(1)
        return Task(x, data.train_y, test, data.test_y, SoftmaxCrossEntropy(), {"accuracy": accuracy})
