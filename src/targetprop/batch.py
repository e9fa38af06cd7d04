"""The samples of one step, and what is averaged, drawn or summed over them.

>>> import torch
>>> batch = Batch(3)
>>> batch.total, batch.mean(torch.tensor([1.0, 2.0, 6.0]))
(3, tensor(3.))
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from targetprop.precision import no_autocast


class Batch:
    """All samples of a step; `targetprop.parallel` derives the part that one of several processes holds.

    Args:
        rows: samples held here.

    Attributes:
        rows: the same.
        processes: how many processes share the samples.
    """

    processes = 1

    def __init__(self, rows: int) -> None:
        """Keep the number."""
        self.rows = rows

    def checked(self) -> "Batch":
        """Refuse a step without samples.

        Returns:
            The batch.

        Raises:
            ValueError: there are none.
        """
        if self.total == 0:
            raise ValueError("the batch is empty; drop it, or set drop_last=True in the data loader")
        return self

    @property
    def total(self) -> int:
        """Samples of the whole step."""
        return self.rows

    def each(self, count: int) -> int:
        """Share rows out.

        Args:
            count: rows of the samples held here.

        Returns:
            How many each sample has; 0 where samples do not have them in equal shares.

        >>> Batch(4).each(12), Batch(4).each(10)
        (3, 0)
        """
        share, left = divmod(count, max(1, self.rows))
        return 0 if left else share

    def head(self, samples: int) -> "Batch":
        """Restrict to the first samples of the step."""
        return Batch(min(samples, self.rows))

    def loss(
        self, value: Tensor, gradient: Tensor, output: Tensor, y: Any, loss: Any, *, summed: bool
    ) -> tuple[Tensor, Tensor]:
        """Turn the loss of the samples held here, and its gradient in ``output``, into those of the whole step."""
        return value, gradient

    def noise(self, width: int, scale: float, generator: torch.Generator, like: Tensor) -> Tensor:
        """Draw white noise, shape ``(rows, width)``; it does not depend on who holds which samples."""
        drawn = torch.empty(self.total, width, dtype=like.dtype, device=like.device)
        return drawn.normal_(0.0, scale, generator=generator)

    def pick(self, values: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Draw rows of the whole step at random.

        Args:
            values: rows of the samples held here, shape ``(rows, positions, …)``.
            count: how many rows to draw.
            generator: source of randomness.

        Returns:
            Shape ``(count, …)``, the same in every process.
        """
        rows = torch.randint(self.total * values.shape[1], (count,), generator=generator, device=values.device)
        return values.flatten(0, 1)[rows]

    def mean(self, values: Tensor) -> Tensor:
        """Average over the whole step and everything in it, a scalar."""
        return values.mean()

    def move_average(
        self, average: Tensor, a: Tensor, b: Tensor, decay: float, out: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """Move a running average towards the mean of ``a bᵀ`` over rows of the whole step.

        Args:
            average: the average so far, shape ``(j, k)``.
            a: rows of the samples held here, shape ``(r, j)``.
            b: shape ``(r, k)``.
            decay: share of the old average that is kept.
            out: where to write the new average, such as the old one; a new tensor if None.

        Returns:
            The new average, and the number of rows in the whole step.
        """
        with no_autocast(average):
            return torch.addmm(average, a.T, b, beta=decay, alpha=(1 - decay) / len(a), out=out), len(a)

    def average_(self, means: Sequence[Tensor]) -> None:
        """Turn means over the samples held here into means over the whole step, in place."""

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over the processes that share the samples, in place."""
