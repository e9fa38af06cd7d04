"""What a linear map is asked, as a regression: a row per sample and position, or sums over all of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from targetprop.batch import Batch
from targetprop.belief import Belief


@dataclass(frozen=True, eq=False)
class Common:
    """What holds for all layers of a step.

    Attributes:
        batch: which samples of the step these are.
        scale: ``β n``: what makes the result a mean over the batch, independent of ``β`` to first order.
        excess: how far the loss is above the least of any output, in units of what is asked of the output, a scalar;
            None for an update that draws no labels.
        belief: the distribution that this is of, if it is known.
        labels: how many labels each sample has.
    """

    batch: Batch
    scale: float
    excess: Tensor | None = None
    belief: Belief | None = None
    labels: int = 1


class Regression(ABC):
    """What a linear map is asked: ``W a`` to change by ``Δz``.

    Rows are made when they are read: those of a convolution, its patches, are many times its input.

    Attributes:
        common: what holds for all layers.
    """

    common: Common

    @property
    @abstractmethod
    def name(self) -> str:
        """The map's name."""

    @property
    @abstractmethod
    def inputs(self) -> int:
        """``d``, with the constant of the bias."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """``k``."""

    @cached_property
    def positions(self) -> int:
        """Rows of one sample, wherever the model has put them."""
        return self._count()

    @property
    @abstractmethod
    def even(self) -> bool:
        """Whether all samples have as many rows; else each row counts as a sample."""

    @property
    @abstractmethod
    def times(self) -> int:
        """How often the pass uses the map."""

    @property
    @abstractmethod
    def drawn(self) -> bool:
        """Whether it is known what drawn labels ask for."""

    @property
    def independent(self) -> int:
        """How many rows of the whole step are independent of each other: no more than there are labels."""
        return self.common.batch.total * min(self.positions, self.common.labels)

    @property
    def scale(self) -> float:
        """``β n`` times the number of positions."""
        return self.common.scale * self.positions

    @cached_property
    def a(self) -> Tensor:
        """Inputs with a constant 1 for the bias, if there is one, shape ``(r, d)``."""
        return self.some_a(slice(None), 1)

    @cached_property
    def dz(self) -> Tensor:
        """Changes wanted of the outputs, shape ``(r, k)``."""
        return self.some_dz(slice(None), 1)

    @abstractmethod
    def kept(self, stride: int) -> int:
        """Count the rows of a sample that are left where one of so many positions is given."""

    @abstractmethod
    def some_a(self, samples: slice, stride: int) -> Tensor:
        """Give the inputs of some samples, at some positions.

        Args:
            samples: which samples.
            stride: of how many positions one is given, from the first in each sample.

        Returns:
            Shape ``(rows, d)``.
        """

    @abstractmethod
    def some_felt(self, stride: int) -> Tensor:
        """Give what drawn labels ask for, at some positions, shape ``(rows, k)``; see `some_a`."""

    @abstractmethod
    def some_dz(self, samples: slice, stride: int) -> Tensor:
        """Give what is wanted of some samples, at some positions, shape ``(rows, k)``; see `some_a`."""

    @abstractmethod
    def product(self, dtype: torch.dtype) -> Tensor:
        """Sum ``Δz aᵀ`` over the rows, shape ``(k, d)``."""

    @abstractmethod
    def _count(self) -> int:
        """Count the positions."""
