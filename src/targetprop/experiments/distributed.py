"""The processes of one run, which ``torchrun`` starts and ends: what they agree on, and how they hear of a failure."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.rendezvous import rendezvous

from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.runs.errors import RunError

TIMEOUT = "TARGETPROP_TIMEOUT"  # environment variable: seconds that a rank waits for another one
_FAILURE = "failure"


@dataclass(frozen=True)
class Processes:
    """This process and the others of its run; all ask for sums and the like in the same order."""

    rank: int = 0  # rank 0 alone prints and writes files
    size: int = 1
    local_rank: int = 0  # on its machine: the number of its GPU
    store: Store | None = None  # where a failure is told; None before they are connected, and for a process alone

    @property
    def group(self) -> "dist.ProcessGroup | None":
        """Their group; None for a process alone."""
        return None if self.store is None else dist.group.WORLD

    @property
    def rows(self) -> slice:
        """This rank's samples of a batch."""
        return slice(self.rank, None, self.size)

    def sum_(self, values: Tensor) -> None:
        """Sum a tensor over all ranks, in place."""
        if self.size > 1:
            with _losing():
                dist.all_reduce(values)

    def largest(self, *numbers: int) -> list[int]:
        """Take the largest of all ranks' numbers, each by itself."""
        if self.size == 1:
            return list(numbers)
        values = torch.tensor(numbers)
        with _losing():
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Collect a value of each rank, in their order."""
        values = [value] * self.size
        if self.size > 1:
            with _losing():
                dist.all_gather_object(values, value)
        return values

    def explain(self, error: BaseException) -> str:
        """Say why the run fails: in the words of the rank that failed first, which tells them to the others."""
        reason = str(error) or type(error).__name__
        if self.store is None or isinstance(error, BrokenPipeError):
            return reason
        lost = isinstance(error, ConnectionError) or isinstance(error.__cause__, ConnectionError)
        with suppress(RuntimeError):  # the store is gone with the process that kept it
            if not lost:
                self.store.compare_set(_FAILURE, "", f"rank {self.rank}: {reason}")
            elif self.store.check([_FAILURE]):
                return self.store.get(_FAILURE).decode()
        return reason


def on_every_rank(command: Callable[[Processes], int]) -> int:
    """Run a command that prints on rank 0 alone; ``torchrun`` reports the failure that came first."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    told = [os.environ.get(name, "") for name in names]
    if "MASTER_ADDR" not in os.environ or not all(text.isdecimal() for text in told) or told[1] == "1":
        return command(Processes())
    rank, size, local_rank = map(int, told)
    processes = Processes(rank, size, local_rank)
    try:
        return record(_printing_on_first)(command, processes) or 0
    except (CommandError, RunError) as error:
        if processes.rank == 0:
            raise
        return error.status


def _printing_on_first(command: Callable[[Processes], int], processes: Processes) -> int:
    if processes.rank == 0:
        return command(processes)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        return command(processes)


@contextmanager
def connect(processes: Processes, device: torch.device) -> Iterator[Processes]:
    """Connect the processes of a run, and part when all have come to its end."""
    if processes.size == 1:
        yield processes
        return
    backend, timeout = "gloo", timedelta(seconds=_read_timeout())
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    try:
        store = next(iter(rendezvous("env://", timeout=timeout)))[0]
        dist.init_process_group(backend, store=store, rank=processes.rank, world_size=processes.size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise CommandError(f"the {processes.size} processes of the run did not meet: {error}", FAILURE) from error
    processes = replace(processes, store=store)
    try:
        yield processes
        with suppress(ConnectionError):  # torchrun ends the others at once where one has left badly
            processes.gather(None)
    except Exception as error:
        reason = processes.explain(error)
        if isinstance(error, ConnectionError) and not isinstance(error, BrokenPipeError):
            raise CommandError(f"the run did not begin: {reason}", FAILURE) from error
        raise
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group()


def _read_timeout() -> float:
    text = os.environ.get(TIMEOUT, "300")
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise CommandError(f"the environment variable {TIMEOUT} must be a number of seconds > 0; got {text!r}")


@contextmanager
def _losing() -> Iterator[None]:
    """Turn PyTorch's errors about lost processes into one that can be told from others."""
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"^\[[^]]*\] *", "", str(error).partition("\n")[0])
        raise ConnectionError(f"another rank has ended or does not answer ({reason})") from error
