"""Which rows of a batch each of several processes holds, and what is drawn, averaged or fetched over all of them.

A step's batch is dealt out as cards are: of two ranks, rank 0 holds samples 0, 2, 4, … and rank 1 holds 1, 3, 5, …,
as PyTorch's ``DistributedSampler`` does. What is drawn at random for a batch, every rank draws for all of it and keeps
its own part, so the numbers do not depend on how many ranks there are.

One process holds everything, and no number changes.

>>> import torch
>>> share = Share.of(3)
>>> share.total, share.mean(torch.tensor([1.0, 2.0, 6.0]))
(3, tensor(3.))
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from targetprop.ranks import Ranks


class Share:
    """The part of one step's batch that a rank holds.

    Args:
        ranks: the processes.
        samples: samples that this one holds.
        counts: tells how many samples each rank holds.
        block: rows per sample, where each sample gives several.

    Attributes:
        ranks: the processes.
    """

    def __init__(self, ranks: Ranks, samples: int, counts: Callable[[], list[int]], block: int = 1) -> None:
        """Keep the question; `counts` is asked when the answer is needed."""
        self.ranks, self._samples, self._ask, self._block = ranks, samples, counts, block

    @classmethod
    def of(cls, samples: int, ranks: Ranks | None = None) -> "Share":
        """Ask the other ranks how many samples of this step they hold.

        Args:
            samples: how many this one holds.
            ranks: the processes; None where this one is alone.

        Returns:
            Its share of the batch.
        """
        if ranks is None or ranks.alone:
            return cls(Ranks() if ranks is None else ranks, samples, lambda: [samples])
        counts = torch.zeros(ranks.size, dtype=torch.long, device=ranks.device)
        counts[ranks.rank] = samples
        wait = ranks.begin_sum([counts])

        def arrived() -> list[int]:
            wait()
            return counts.tolist()

        return cls(ranks, samples, arrived)

    @cached_property
    def _counts(self) -> list[int]:
        return self._ask()

    @property
    def rows(self) -> int:
        """Rows that this rank holds."""
        return self._samples * self._block

    @property
    def total(self) -> int:
        """Rows of the whole batch."""
        return sum(self._counts) * self._block

    def _places(self, rank: int) -> Tensor:
        """Places of a rank's samples in the whole batch, which deals one to each rank that has any left."""
        turn = torch.arange(self._counts[rank])
        dealt = [(turn + (other < rank)).clamp(max=n) for other, n in enumerate(self._counts)]
        return torch.stack(dealt).sum(0)

    @cached_property
    def _own(self) -> Tensor:
        return self._places(self.ranks.rank).to(self.ranks.device)

    def head(self, samples: int) -> "Share":
        """Restrict to the first samples of the whole batch.

        Args:
            samples: how many.

        Returns:
            This rank's share of them: the first of its own rows.
        """
        if samples * self._block >= self.total:
            return self
        if self.ranks.alone:
            return Share(self.ranks, samples, lambda: [samples], self._block)
        counts = [int((self._places(rank) < samples).sum()) for rank in range(self.ranks.size)]
        return Share(self.ranks, counts[self.ranks.rank], lambda: counts, self._block)

    def times(self, block: int) -> "Share":
        """Count rows where each sample gives several.

        Args:
            block: rows per sample.

        Returns:
            The same share of those rows.
        """
        return self if block == 1 else Share(self.ranks, self._samples, lambda: self._counts, self._block * block)

    def keep(self, values: Tensor) -> Tensor:
        """Cut this rank's samples out of values of the whole batch.

        Args:
            values: shape ``(total, …)``.

        Returns:
            Shape ``(rows, …)``.
        """
        return values if self.ranks.alone else values[self._own]

    def take(self, values: Tensor, rows: Tensor) -> Tensor:
        """Fetch some rows of the whole batch from the ranks that hold them.

        Args:
            values: this rank's rows, shape ``(rows, …)``.
            rows: indices into the rows of the whole batch, the same on every rank.

        Returns:
            Those rows, on every rank.
        """
        if self.ranks.alone:
            return values[rows]
        home = torch.full((sum(self._counts),), -1, device=rows.device)
        home[self._own] = torch.arange(self._samples, device=rows.device)
        sample = home[rows // self._block]
        mine, found = sample >= 0, values.new_zeros(len(rows), *values.shape[1:])
        found[mine] = values[sample[mine] * self._block + rows[mine] % self._block]
        self.sum_([found])
        return found

    def whole(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Put numbers per sample together over ranks.

        Args:
            values: tensors of shape ``(rows,)``.

        Returns:
            Tensors of shape ``(total,)``, in the order of the whole batch.
        """
        if self.ranks.alone:
            return list(values)
        found = [value.new_zeros(self.total).index_copy_(0, self._own, value) for value in values]
        self.sum_(found)
        return found

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over all ranks, in place.

        Args:
            tensors: what to sum.
        """
        self.ranks.sum_(tensors)

    def mean(self, values: Tensor) -> Tensor:
        """Average over the whole batch and everything in it.

        Args:
            values: this rank's rows, shape ``(rows, …)``.

        Returns:
            A scalar.
        """
        if self.ranks.alone:
            return values.mean()
        total = values.sum()
        self.sum_([total])
        return total / (self.total * values.shape[1:].numel())

    def add_product_(self, average: Tensor, a: Tensor, b: Tensor, decay: float) -> None:
        """Add the mean of ``a bᵀ`` over the whole batch to a running average, in place.

        Args:
            average: the average so far, shape ``(j, k)``.
            a: this rank's rows, shape ``(rows, j)``.
            b: shape ``(rows, k)``.
            decay: share of the old average that is kept.
        """
        if self.ranks.alone:
            average.mul_(decay).addmm_(a.T, b, alpha=(1 - decay) / len(a))
            return
        product = torch.zeros_like(average).addmm_(a.T, b)  # in place, which autocast leaves alone
        self.sum_([product])
        average.mul_(decay).add_(product, alpha=(1 - decay) / self.total)

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Turn means over this rank's rows into means over the whole batch, in place.

        Args:
            tensors: the means; zeros where there are no rows.
        """
        if not self.ranks.alone:
            for tensor in tensors:
                tensor.mul_(self.rows / self.total)
            self.sum_(tensors)
