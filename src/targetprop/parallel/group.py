"""Processes of `torch.distributed`: what they sum, copy and send each other.

>>> Group().alone, Group().largest([3, 1])
(True, [3, 1])
"""

import atexit
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from time import sleep
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_SETTLING = 0.1  # seconds


def _settle() -> None:
    """Let the threads of process groups free the tensors that they sent last.

    They need the interpreter for that, and abort the process if it shuts down meanwhile (PyTorch's pull 179291).
    """
    sleep(_SETTLING)


class Group:
    """A group of processes, and this one's rank in it.

    Args:
        group: the group; None is one process alone.
        device: where tensors that are sent have to be.
    """

    def __init__(self, group: "dist.ProcessGroup | None" = None, device: torch.device | str = "cpu") -> None:
        """Find this process' rank."""
        self._group, self.device = group, torch.device(device)
        self.size, self.rank = (1, 0) if group is None else (group.size(), group.rank())
        if group is not None:
            atexit.unregister(_settle)
            atexit.register(_settle)

    @property
    def alone(self) -> bool:
        """Whether this process is the only one."""
        return self.size == 1

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over all ranks, in place; every rank must ask for the same ones in the same order."""
        if self.alone:
            return
        for same in _by_type(tensors):
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in same])
            with sending():
                dist.all_reduce(flat, group=self._group)
            _unpack(flat, same)

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """Take the largest of all ranks' whole numbers, each by itself."""
        if self.alone:
            return list(numbers)
        values = torch.tensor(numbers, device=self.device)
        with sending():
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group)
        return values.tolist()

    def first(self, number: int) -> int:
        """Take rank 0's whole number, less whole multiples of 2⁶³ where there are several ranks."""
        if self.alone:
            return number
        value = torch.tensor([number % 2**63], device=self.device)
        self.copy_from(0, [value])
        return int(value)

    def copy_from(self, source: int, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with the values that one rank has."""
        for same in () if self.alone else _by_type(tensors):
            flat = torch.cat([tensor.detach().reshape(-1).to(self.device) for tensor in same])
            with sending():
                dist.broadcast(flat, group_src=source, group=self._group)
            if source != self.rank:
                _unpack(flat, same)

    def start_alike(self, named: Mapping[str, Tensor]) -> None:
        """Give every rank the parameters that rank 0 has; other names, shapes or types are a ``ValueError``."""
        if self.alone:
            return
        text = "\n".join(f"{name} {tuple(t.shape)} {t.dtype}" for name, t in named.items())
        if self.differs([int.from_bytes(sha256(text.encode()).digest()[:6])]):
            raise ValueError(
                "the ranks hold different parameters; build the same model with the same method on every rank"
            )
        self.copy_from(0, list(named.values()))

    def differs(self, numbers: Sequence[int]) -> bool:
        """Say whether the ranks do not all have the same whole numbers."""
        high = self.largest([*numbers, *(-number for number in numbers)])
        return high[: len(numbers)] != [-number for number in high[len(numbers) :]]

    def collect(self, mine: Any) -> list[Any]:
        """Gather an object of each rank, in the order of the ranks; tensors in it have to be on the CPU."""
        found: list[Any] = [mine] * self.size
        if not self.alone:
            with sending():
                dist.all_gather_object(found, mine, group=self._group)
        return found

    def exchange(self, sent: Sequence[tuple[Tensor, int]], received: Sequence[tuple[Tensor, int]]) -> None:
        """Send tensors, each to a rank, and overwrite others, each with what comes from a rank, at the same time."""
        group = self._group
        operations = [dist.P2POp(dist.isend, tensor.contiguous(), group=group, group_peer=to) for tensor, to in sent]
        operations += [dist.P2POp(dist.irecv, tensor, group=group, group_peer=source) for tensor, source in received]
        with sending():
            for work in dist.batch_isend_irecv(operations) if operations else ():
                work.wait()


@contextmanager
def sending():
    """Turn PyTorch's errors about lost processes into one that can be told from others."""
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"^\[[^]]*\] *", "", str(error)).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise ConnectionError(f"another rank has ended or does not answer ({reason})") from error


def _by_type(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    return [[t for t in tensors if t.dtype == dtype] for dtype in dict.fromkeys(t.dtype for t in tensors)]


@torch.no_grad()
def _unpack(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))
