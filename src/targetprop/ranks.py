"""The processes that train one model side by side: sums over all of them, and agreement.

One process is rank 0 of 1: nothing is sent, and no number changes.

>>> Ranks().alone, Ranks().largest([3, 1])
(True, [3, 1])
"""

import atexit
import re
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from time import sleep

import torch
import torch.distributed as dist
from torch import Tensor

_SETTLING = 0.1  # seconds


def _settle() -> None:
    """Let the threads of process groups free the tensors that they sent last.

    They need the interpreter for that, and abort the process if it shuts down meanwhile (PyTorch's pull 179291).
    """
    sleep(_SETTLING)


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
        if group is not None:
            atexit.unregister(_settle)
            atexit.register(_settle)

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
