"""The processes that train one model side by side: which rows of a batch each holds, and sums over all of them.

A step's batch is dealt out as cards are: of two ranks, rank 0 holds samples 0, 2, 4, … and rank 1 holds 1, 3, 5, …,
as PyTorch's ``DistributedSampler`` does. What is drawn at random for a batch, every rank draws for all of it and keeps
its own part, so the numbers do not depend on how many ranks there are.

One process is rank 0 of 1: it holds everything, nothing is sent, and no number changes.

>>> import torch
>>> share = Ranks().share(3)
>>> share.total, share.mean(torch.tensor([1.0, 2.0, 6.0]))
(3, tensor(3.))
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from hashlib import sha256

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """A group of processes, and this one's place in it.

    Args:
        group: the group; None is one process alone.
        device: where tensors that are sent have to be.
    """

    def __init__(self, group: "dist.ProcessGroup | None" = None, device: torch.device | str = "cpu") -> None:
        """Find this process' place."""
        self._group, self.device = group, torch.device(device)
        self.size, self.rank = (1, 0) if group is None else (group.size(), group.rank())

    @property
    def alone(self) -> bool:
        """Whether this process is the only one."""
        return self.size == 1

    def begin_sum(self, tensors: Sequence[Tensor]) -> Callable[[], None]:
        """Start to sum tensors over all ranks; every rank must ask for the same ones in the same order.

        Args:
            tensors: what to sum, each in place.

        Returns:
            A function that waits until the tensors hold their sums.
        """
        if self.alone or not tensors:
            return lambda: None
        parcels: list[tuple[list[Tensor], Tensor, dist.Work | None]] = []
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            same = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in same])
            with Sending():
                parcels.append((same, flat, dist.all_reduce(flat, group=self._group, async_op=True)))

        def wait() -> None:
            for same, flat, work in parcels:
                with Sending():
                    assert work is not None
                    work.wait()
                unpack(flat, same)

        return wait

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over all ranks, in place.

        Args:
            tensors: what to sum.
        """
        self.begin_sum(tensors)()

    def share(self, samples: int) -> "Share":
        """Ask the other ranks how many samples of this step they hold.

        Args:
            samples: how many this one holds.

        Returns:
            Its share of the batch.
        """
        if self.alone:
            return Share(self, samples, lambda: [samples])
        counts = torch.zeros(self.size, dtype=torch.long, device=self.device)
        counts[self.rank] = samples
        wait = self.begin_sum([counts])

        def arrived() -> list[int]:
            wait()
            return counts.tolist()

        return Share(self, samples, arrived)

    def first(self, number: int) -> int:
        """Take a whole number from rank 0.

        Args:
            number: this rank's.

        Returns:
            Rank 0's, less whole multiples of 2⁶³ where there are several ranks.
        """
        if self.alone:
            return number
        value = torch.tensor([number % 2**63], device=self.device)
        with Sending():
            dist.broadcast(value, group_src=0, group=self._group)
        return int(value)

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """Take the largest of all ranks' numbers, each by itself.

        Args:
            numbers: this rank's, as many on every rank.

        Returns:
            As many, the same on every rank.
        """
        if self.alone:
            return list(numbers)
        values = torch.tensor(numbers, device=self.device)
        with Sending():
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group)
        return values.tolist()

    def least(self, number: int) -> int:
        """Take the smallest of all ranks' numbers.

        Args:
            number: this rank's.

        Returns:
            The same on every rank.
        """
        return -self.largest([-number])[0]

    def copy_from_first(self, tensors: Iterable[Tensor], names: Iterable[str], what: str) -> None:
        """Give every rank the values that rank 0 has.

        Args:
            tensors: what to overwrite.
            names: their names, by which ranks notice that they do not hold the same things.
            what: what they are, for the message.

        Raises:
            ValueError: the ranks hold tensors of other names, shapes or types.
        """
        if self.alone:
            return
        tensors = list(tensors)
        text = "\n".join(f"{n} {tuple(t.shape)} {t.dtype}" for n, t in zip(names, tensors, strict=True))
        number = int.from_bytes(sha256(text.encode()).digest()[:6])
        if self.differs(torch.tensor([number], dtype=torch.double)):
            raise ValueError(
                f"the ranks hold different {what}; build the same model with the same method on every rank"
            )
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            same = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.detach().reshape(-1).to(self.device) for tensor in same])
            with Sending():
                dist.broadcast(flat, group_src=0, group=self._group)
            unpack(flat, same)

    def differs(self, numbers: Tensor) -> bool:
        """Compare numbers over ranks.

        Args:
            numbers: shape ``(k,)``, float64; NaN counts as 0.

        Returns:
            Whether the ranks do not all have the same.
        """
        if self.alone:
            return False
        numbers = numbers.to(self.device).nan_to_num()
        extremes = torch.cat([numbers, -numbers])
        with Sending():
            dist.all_reduce(extremes, dist.ReduceOp.MAX, group=self._group)
        high, low = extremes.chunk(2)
        return not torch.equal(high, -low)


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


class Sending:
    """Turns PyTorch's errors about lost processes into one that can be told from others."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError):
            reason = re.sub(r"^\[[^]]*\] *", "", str(error)).partition("\n")[0].partition(". ")[0].rstrip(".")
            raise ConnectionError(f"another rank has ended or does not answer ({reason})") from error


def unpack(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy numbers that travelled together to where they belong.

    Args:
        flat: the numbers.
        tensors: what to overwrite.
    """
    with torch.no_grad():
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))
