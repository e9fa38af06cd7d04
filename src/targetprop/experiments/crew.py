"""The processes of one run, as ``torchrun`` starts them: how they meet, and how all end when one does.

Rank 0 keeps the run's folder. A rank that ends early leaves its reason in the store by which they met; rank 0 reads it
there when it finds the others gone, so that ``summary.json`` says what happened and not merely that somebody left.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from signal import SIGINT
from time import monotonic

import torch
import torch.distributed as dist
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.experiments.signals import Signals

TIMEOUT = timedelta(seconds=50)  # how long a rank waits for another one
_PATIENCE = 2.0  # seconds that the ranks which ended have to say why
_NOTHING = "-"  # what a rank leaves that ended because of others


@dataclass(frozen=True)
class Place:
    """Where a process stands among those of its run.

    Attributes:
        rank: its number.
        size: how many there are.
        local: its number on its own machine, which is that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local: int = 0


def find_place() -> Place:
    """Look for what ``torchrun`` tells the processes that it starts.

    Returns:
        The place; rank 0 of 1 where nobody said anything.
    """
    told = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if "MASTER_ADDR" not in os.environ or not all(text.isdecimal() for text in told):
        return Place()
    return Place(*map(int, told))


class Stopped(Exception):
    """The run ended early, by a signal or by the fault of another rank.

    Args:
        status: "interrupted" or "failed".
        reason: why, for a person.
        code: exit status of the process.
    """

    def __init__(self, status: str, reason: str, code: int) -> None:
        """Keep all."""
        super().__init__(reason)
        self.status, self.reason, self.code = status, reason, code


class Crew:
    """This process and the others of its run.

    Args:
        place: where it stands.
        group: the group for `targetprop.TargetPropagation`; None alone.
        store: where ranks leave their reasons.

    Attributes:
        bereft: whether rank 0 is gone without a word, and it falls to this one to say so.
    """

    def __init__(self, place: Place, group: "dist.ProcessGroup | None" = None, store: Store | None = None) -> None:
        """Keep all."""
        self.place, self.group, self._store = place, group, store
        self._signals, self.bereft, self._finished = Signals(), False, False

    @property
    def keeps(self) -> bool:
        """Whether this process keeps the run's folder."""
        return self.place.rank == 0

    def check(self) -> None:
        """End the run between two steps, by `Stopped`, if a signal asked for it."""
        if self._signals.reason is not None:
            raise self._stopped("interrupted", self._signals.reason)

    def _stopped(self, status: str, reason: str) -> Stopped:
        return Stopped(status, reason, 128 + self._signals.number if status == "interrupted" else FAILURE)

    def work(self, action: Callable[[], None], last_words: Callable[[str, str], None]) -> None:
        """Do this rank's part of the run; `Stopped` says that a signal or another rank ended it.

        Args:
            action: the part; it calls `check` every now and then.
            last_words: told status and reason where the part hangs in a call that nothing ends.
        """
        if self._store is None:
            try:
                with self._signals.raising():
                    action()
            except KeyboardInterrupt as stop:
                self._signals.number = self._signals.number or SIGINT
                raise self._stopped("interrupted", self._signals.reason or "") from stop
            return
        with self._signals.noting(lambda reason: last_words(*self._explain("interrupted", reason))):
            try:
                action()
                self._finished = True
                self._tell(_NOTHING)
            except ConnectionError as error:
                self._tell(_NOTHING)
                raise self._stopped(*self._explain("failed", str(error))) from error
            except Stopped as stop:
                self._tell(_NOTHING)
                raise self._stopped(*self._explain(stop.status, stop.reason)) from stop
            except BaseException as error:
                self._tell(str(error) or type(error).__name__)
                raise

    def leave_folder(self, path: Path) -> None:
        """Tell the other ranks where the run is kept.

        Args:
            path: its folder.
        """
        if self._store is not None:
            self._store.set("folder", str(path.absolute()))

    def find_folder(self) -> Path | None:
        """Look where the run is kept.

        Returns:
            What rank 0 says, as soon as it has made it; None if it does not.
        """
        path = self._read("folder", TIMEOUT.total_seconds())
        return None if path is None else Path(path)

    def leave(self) -> None:
        """Let rank 0 leave a finished run first: where one leaves badly, ``torchrun`` ends the others at once."""
        if self.keeps:
            with suppress(RuntimeError):
                assert self._store is not None
                self._store.set("over", "")
        elif self._finished:
            self._read("over", TIMEOUT.total_seconds())

    def _tell(self, reason: str) -> None:
        with suppress(RuntimeError):
            assert self._store is not None
            self._store.set(f"reason/{self.place.rank}", reason)

    def _explain(self, status: str, reason: str) -> tuple[str, str]:
        """Find out whether the run was stopped, or a rank failed: one that says so, or one that says nothing at all."""
        end, silent, place = monotonic() + _PATIENCE, [], self.place
        for rank in (rank for rank in range(place.size) if rank != place.rank):
            said = self._read(f"reason/{rank}", max(0.1, end - monotonic()))
            if said is None:
                silent.append(str(rank))
            elif said != _NOTHING:
                return "failed", f"rank {rank}: {said}"
        self.bereft = place.rank == 1 and "0" in silent
        if silent:
            who = f"rank {' or '.join(silent)} gave no reason; the system may have killed it, for want of memory say"
            return "failed", f"{who} ({reason})"
        return ("interrupted", self._signals.reason) if self._signals.reason is not None else (status, reason)

    def _read(self, key: str, seconds: float) -> str | None:
        assert self._store is not None
        try:
            self._store.wait([key], timedelta(seconds=seconds))
            return self._store.get(key).decode()
        except RuntimeError:  # nothing was left, or the store is gone
            return None


@contextmanager
def join(place: Place, device: torch.device) -> Iterator[Crew]:
    """Meet the other processes of the run.

    Args:
        place: where this one stands.
        device: where it trains.

    Yields:
        The crew.

    Raises:
        CommandError: they do not meet.
    """
    if place.size == 1:
        yield Crew(place)
        return
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "nccl"
    try:
        store = next(iter(rendezvous("env://", timeout=TIMEOUT)))[0]
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise CommandError(f"the {place.size} processes of the run did not meet: {error}", FAILURE) from error
    crew = Crew(place, dist.group.WORLD, store)
    try:
        yield crew
    finally:
        crew.leave()
        with suppress(RuntimeError):
            dist.destroy_process_group()
