"""The samples of a step that one of several processes holds.

A step's batch is dealt out as cards are: of two ranks, rank 0 holds samples 0, 2, 4, … and rank 1 holds 1, 3, 5, …, as
PyTorch's ``DistributedSampler`` does. What is drawn at random for a batch, every rank draws for all of it and keeps its
own part, so the numbers do not depend on how many ranks there are.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.batch import Batch
from targetprop.parallel.group import Group


class BatchShard(Batch):
    """One rank's samples of a step.

    Args:
        group: the processes that share the step.
        counts: how many samples each rank holds.
    """

    def __init__(self, group: Group, counts: Sequence[int]) -> None:
        """Keep both."""
        super().__init__(counts[group.rank])
        self._group, self._counts = group, list(counts)
        self.processes = group.size

    @classmethod
    def of(cls, group: Group, rows: int) -> "BatchShard":
        """Ask the other ranks how many samples of the step they hold."""
        counts = torch.zeros(group.size, dtype=torch.long, device=group.device)
        counts[group.rank] = rows
        group.sum_([counts])
        return cls(group, counts.tolist())

    @property
    def total(self) -> int:
        """Samples of the whole step."""
        return sum(self._counts)

    def _dealt(self, rank: int) -> Tensor:
        """Number the samples of a rank within the whole step, which deals one to each rank that has any left."""
        turn = torch.arange(self._counts[rank])
        before = [(turn + (other < rank)).clamp(max=n) for other, n in enumerate(self._counts)]
        return torch.stack(before).sum(0)

    @cached_property
    def _own(self) -> Tensor:
        return self._dealt(self._group.rank).to(self._group.device)

    def head(self, samples: int) -> "BatchShard":
        """Restrict to the first samples of the step; see `Batch.head`."""
        counts = [int((self._dealt(rank) < samples).sum()) for rank in range(self._group.size)]
        return BatchShard(self._group, counts)

    def loss(
        self, value: Tensor, gradient: Tensor, output: Tensor, y: Any, loss: Any, *, summed: bool
    ) -> tuple[Tensor, Tensor]:
        """Weigh each rank's mean by its samples, cross-entropy's by the weights of its classes; see `Batch.loss`."""
        if summed:
            self.sum_([value])
            return value, gradient
        worth = _worth(output, y, loss)
        sums = torch.stack([torch.where(worth > 0, worth * value, 0.0), worth])
        self.sum_([sums])
        part = torch.where(worth > 0, worth / sums[1], 0.0)
        return (sums[0] / sums[1]).to(value.dtype), torch.where(part > 0, gradient * part, 0.0).to(gradient.dtype)

    def noise(self, width: int, scale: float, generator: torch.Generator, like: Tensor) -> Tensor:
        """Draw for all samples and keep those of this rank; see `Batch.noise`."""
        return super().noise(width, scale, generator, like)[self._own]

    def pick(self, values: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Fetch the rows from the ranks that hold them; see `Batch.pick`."""
        positions = values.shape[1]
        rows = torch.randint(self.total * positions, (count,), generator=generator, device=values.device)
        home = torch.full((self.total,), -1, device=values.device)
        home[self._own] = torch.arange(self.rows, device=values.device)
        sample = home[rows // positions]
        mine, found = sample >= 0, values.new_zeros(count, *values.shape[2:])
        found[mine] = values[sample[mine], rows[mine] % positions]
        self.sum_([found])
        return found

    def whole(self, values: Tensor) -> Tensor:
        """Put numbers per sample together in the order of the whole step.

        Args:
            values: shape ``(rows,)``; of another length where a layer has time first, or folds positions into the axis.

        Returns:
            Shape ``(total,)``; where they are not per sample in all processes, each has its own.
        """
        others = values.new_tensor(int(len(values) != self.rows))
        self.sum_([others])  # all processes have to do the same
        if others:
            return values
        found = values.new_zeros(self.total).index_copy_(0, self._own, values)
        self.sum_([found])
        return found

    def mean(self, values: Tensor) -> Tensor:
        """Average over the whole step; see `Batch.mean`."""
        total = torch.stack([values.sum().double(), values.new_tensor(values.numel(), dtype=torch.double)])
        self.sum_([total])
        return (total[0] / total[1]).to(values.dtype)

    def move_average(
        self, average: Tensor, a: Tensor, b: Tensor, decay: float, out: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """Sum the product over ranks first; see `Batch.move_average`."""
        product = torch.zeros_like(average).addmm_(a.T, b)  # in place, which autocast leaves alone
        rows = torch.tensor([len(a)], device=average.device)
        self.sum_([product, rows])
        return torch.add(decay * average, product, alpha=(1 - decay) / int(rows), out=out), int(rows)

    def average_(self, means: Sequence[Tensor]) -> None:
        """Weigh each rank's means by its samples; see `Batch.average_`."""
        for tensor in means:
            tensor.mul_(self.rows / self.total)
        self.sum_(means)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sum over ranks; see `Batch.sum_`."""
        self._group.sum_(tensors)


def _worth(output: Tensor, y: Any, loss: Any) -> Tensor:
    """What a mean over the batch divides by: the number of samples, or the weights of their classes."""
    if not isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) or y.is_floating_point():
        return torch.tensor(float(len(output)), dtype=torch.double, device=output.device)
    counted = y != loss.ignore_index
    weight = output.new_ones(output.shape[1]) if loss.weight is None else loss.weight
    return (weight[torch.where(counted, y, 0)] * counted).sum(dtype=torch.double)
