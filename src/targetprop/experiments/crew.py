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
from time import monotonic

import torch
import torch.distributed as dist
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.experiments.loop import Session
from targetprop.experiments.stop_signals import StopSignals, impatient

TIMEOUT = timedelta(seconds=50)  # how long a rank waits for another one
_PATIENCE = 2.0  # seconds that the ranks which ended have to say why
_NOTHING = "-"  # what a rank leaves that ended because of others


@dataclass(frozen=True)
class Seat:
    """Where a process stands among those of its run.

    Attributes:
        rank: its number.
        size: how many there are.
        local: its number on its own machine, which is that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local: int = 0


def find_seat() -> Seat:
    """Look for what ``torchrun`` tells the processes that it starts.

    Returns:
        The seat; rank 0 of 1 where nobody said anything.
    """
    told = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if "MASTER_ADDR" not in os.environ or not all(text.isdecimal() for text in told):
        return Seat()
    return Seat(*map(int, told))


class Lost(Exception):
    """The run ended early by the fault of another rank.

    Args:
        status: "failed", or "interrupted" where a signal has ended the others.
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
        seat: where it stands.
        group: the group for `targetprop.TargetPropagation`; None alone.
        store: where ranks leave their reasons.

    Attributes:
        signals: what may ask this rank, and with it all, to stop.
        bereft: whether rank 0 is gone without a word, and it falls to this one to say so.
    """

    def __init__(self, seat: Seat, group: "dist.ProcessGroup | None" = None, store: Store | None = None) -> None:
        """Keep all."""
        self.seat, self.group, self._store = seat, group, store
        self.signals, self.bereft, self._finished = StopSignals(), False, False

    @property
    def keeps(self) -> bool:
        """Whether this process keeps the run's folder."""
        return self.seat.rank == 0

    def agree(self, session: Session, *, save: bool = False) -> tuple[bool, bool]:
        """Decide between two steps with all other ranks, which all ask at the same place.

        Args:
            session: the session; if it is to be saved, rank 0's then holds what belongs to all ranks.
            save: whether it is time to save it, by this rank's clock.

        Returns:
            Whether to stop, as a signal asked some rank to; and whether to save, for that or as rank 0 wants to.
        """
        heard, save_now = session.ranks.largest([self.signals.received or 0, int(save and self.keeps)])
        if heard:
            self.signals.received = heard
            self.signals.settled.set()
        if (heard or save_now) and session.place is not None:
            session.place.gather(session.ranks)
        return bool(heard), bool(heard or save_now)

    def work(self, action: Callable[[], int], last_words: Callable[[str, str], object]) -> int:
        """Do this rank's part of the run.

        Args:
            action: the part, which returns an exit status.
            last_words: told status and reason where the part hangs in a call that nothing ends.

        Returns:
            The exit status.

        Raises:
            Lost: it cannot be done without another rank, which has ended.
        """
        if self._store is None:
            return action()
        with impatient(self.signals, lambda: last_words(*self._explain(self.signals.reason))):
            try:
                code = action()
                self._finished = True
                self._tell(_NOTHING)
            except ConnectionError as error:
                self._tell(_NOTHING)
                status, reason = self._explain(str(error))
                raise Lost(status, reason, FAILURE if status == "failed" else self.signals.exit_status) from error
            except BaseException as error:
                self._tell(str(error) or type(error).__name__)
                raise
        return code

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
            self._store.set(f"reason/{self.seat.rank}", reason)

    def _explain(self, reason: str) -> tuple[str, str]:
        """Find out whether the run was stopped, or a rank failed: one that says so, or one that says nothing at all."""
        end, silent, seat = monotonic() + _PATIENCE, [], self.seat
        for rank in (rank for rank in range(seat.size) if rank != seat.rank):
            said = self._read(f"reason/{rank}", max(0.1, end - monotonic()))
            if said is None:
                silent.append(str(rank))
            elif said != _NOTHING:
                return "failed", f"rank {rank}: {said}"
        self.bereft = seat.rank == 1 and "0" in silent
        if silent:
            who = f"rank {' or '.join(silent)} gave no reason; the system may have killed it, for want of memory say"
            return "failed", f"{who} ({reason})"
        return ("failed", reason) if self.signals.received is None else ("interrupted", self.signals.reason)

    def _read(self, key: str, seconds: float) -> str | None:
        assert self._store is not None
        try:
            self._store.wait([key], timedelta(seconds=seconds))
            return self._store.get(key).decode()
        except RuntimeError:  # nothing was left, or the store is gone
            return None


@contextmanager
def join(seat: Seat, device: torch.device) -> Iterator[Crew]:
    """Meet the other processes of the run.

    Args:
        seat: where this one stands.
        device: where it trains.

    Yields:
        The crew.

    Raises:
        CommandError: they do not meet.
    """
    if seat.size == 1:
        yield Crew(seat)
        return
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "nccl"
    try:
        store = next(iter(rendezvous("env://", timeout=TIMEOUT)))[0]
        dist.init_process_group(backend, store=store, rank=seat.rank, world_size=seat.size, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise CommandError(f"the {seat.size} processes of the run did not meet: {error}", FAILURE) from error
    crew = Crew(seat, dist.group.WORLD, store)
    try:
        yield crew
    finally:
        crew.leave()
        with suppress(RuntimeError):
            dist.destroy_process_group()
