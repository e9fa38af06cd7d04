"""Norms and sums over all columns of an iterate, of which other processes may hold some."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from targetprop.inversion.problem import sample_norm


@dataclass(frozen=True)
class Columns:
    """Where the columns of an iterate are.

    Attributes:
        add: sums tensors over the processes that hold the columns, in place; None where this one holds all.
    """

    add: Callable[[Sequence[Tensor]], None] | None = None

    def norms(self, *values: Tensor) -> list[Tensor]:
        """Compute the Euclidean norm of each sample over all columns.

        Args:
            *values: this process' columns, each of shape ``(n, …)``.

        Returns:
            For each of them, the norms of shape ``(n,)``.
        """
        own = [sample_norm(value) for value in values]
        if self.add is None:
            return own
        squares = torch.stack(own).square()
        self.add([squares])
        return list(squares.sqrt())

    def sum(self, values: Tensor) -> Tensor:
        """Sum what each process made of its own columns.

        Args:
            values: any shape, overwritten.

        Returns:
            The sum.
        """
        if self.add is not None:
            self.add([values])
        return values
