"""The processes of one run, as ``torchrun`` starts them: how they meet, and how all end when one does.

Rank 0 keeps the run's folder. A rank that ends early leaves its reason in the store by which they met; rank 0 reads it
there when it finds the others gone, so that ``summary.json`` says what happened and not merely that somebody left. One
that is silent is ended by those on its machine, so that nobody waits for it.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from threading import Event
from time import monotonic, sleep

import torch
import torch.distributed as dist
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.experiments.loop import Session
from targetprop.experiments.pulse import LOOKS, PERIOD, Pulse, beat_key, silence_key
from targetprop.experiments.seat import Seat
from targetprop.experiments.stop_signals import GRACE, StopSignals, impatient
from targetprop.experiments.streams import gather_streams

MEETING = 50.0  # seconds that a rank waits for the others to come
TIMEOUT = 600.0  # seconds that a rank waits for another one that lives
_PATIENCE = 2.0  # seconds that the ranks which ended have to say why
_MOMENT = 0.05  # seconds between two looks into the store
_NOTHING = "-"  # what a rank leaves that finished, or ended because of others


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
        store: where ranks leave words for each other; None alone.

    Attributes:
        signals: what may ask this rank, and with it all, to stop.
        bereft: whether rank 0 is gone without a word, and it falls to this one to say so.
        last_words: told status and reason where this process hangs in a call that nothing ends.
    """

    def __init__(self, seat: Seat, store: Store | None = None) -> None:
        """Keep all."""
        self.seat, self._store = seat, store
        self._group: dist.ProcessGroup | None = None
        self.signals, self.bereft, self._finished, self._told = StopSignals(), False, False, False
        self.last_words: Callable[[str, str], object] = lambda status, reason: None
        self._settled = Event()

    @property
    def keeps(self) -> bool:
        """Whether this process keeps the run's folder."""
        return self.seat.rank == 0

    @property
    def _others(self) -> list[int]:
        return [rank for rank in range(self.seat.size) if rank != self.seat.rank]

    def meet(self, key: Callable[[int], str], what: str, seconds: float) -> None:
        """Wait until all ranks have left a word.

        Args:
            key: its name by rank.
            what: what the ranks should do, for the message.
            seconds: how long.

        Raises:
            ConnectionError: a rank did not, has ended, or a signal asks this one to stop.
        """
        end = monotonic() + seconds
        for rank in self._others:
            while not self._has(key(rank)):
                if self._has(_reason_key(rank)) or self._has(silence_key(rank)):
                    raise ConnectionError(f"rank {rank} has ended")
                if self.signals.received:
                    raise ConnectionError(f"{self.signals.reason} before rank {rank} did {what}")
                if monotonic() > end:
                    raise ConnectionError(f"rank {rank} did not {what} within {seconds:.0f} seconds")
                sleep(_MOMENT)

    def connect(self, device: torch.device) -> "dist.ProcessGroup | None":
        """Make the group, once all ranks are ready to train.

        Args:
            device: where this one trains.

        Returns:
            The group; None alone.

        Raises:
            CommandError: they cannot be connected.
        """
        if self._store is None:
            return None
        self._store.set(_ready_key(self.seat.rank), "")
        self.meet(_ready_key, "get ready", TIMEOUT)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend, size = "nccl" if device.type == "cuda" else "gloo", self.seat.size
        try:
            dist.init_process_group(
                backend, store=self._store, rank=self.seat.rank, world_size=size, timeout=timedelta(seconds=TIMEOUT)
            )
        except (RuntimeError, ValueError) as error:
            raise CommandError(f"the {size} processes of the run cannot be connected: {error}", FAILURE) from error
        self._group = dist.group.WORLD
        return self._group

    def agree(self, session: Session, *, save: bool = False, epoch: bool = False) -> tuple[bool, bool]:
        """Decide between two steps with all other ranks, which all ask at the same place.

        Args:
            session: the session; if it is to be saved, rank 0's then holds what belongs to all ranks.
            save: whether it is time to save it, by this rank's clock.
            epoch: whether an epoch has ended, after which it is saved in any case.

        Returns:
            Whether to stop, as a signal asked some rank to; and whether to save, for that or as rank 0 wants to.
        """
        heard, save_now = session.ranks.largest([self.signals.received or 0, int(save and self.keeps)])
        if heard:
            self.signals.received = heard
            self.signals.settled.set()
        saves = bool(heard or save_now)
        if saves and session.place is not None:
            session.place.gather(session.ranks)
        if saves or epoch:
            session.streams = gather_streams(session.ranks)
        return bool(heard), saves

    def listen(self) -> AbstractContextManager[object]:
        """Hear of signals in a process that trains alone; one of several has heard of them since they met.

        Returns:
            The context.
        """
        return self.signals if self._store is None else nullcontext()

    def work(self, action: Callable[[], int]) -> int:
        """Do this rank's part of the run.

        Args:
            action: the part, which returns an exit status.

        Returns:
            The exit status.
        """
        with self.heard():
            code = action()
            if self._store is not None:
                self._finished = True
                self._end(_NOTHING)
        return code

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Leave the reason for the others if this rank ends early, and look for theirs if they have.

        Yields:
            Nothing.

        Raises:
            Lost: another rank has ended, and this one cannot go on without it.
            ConnectionError: this process trains alone, so it is about something else.
        """
        try:
            yield
        except ConnectionError as error:
            if self._store is None:
                raise
            self._end(_NOTHING)
            status, reason = self._explain(str(error))
            raise Lost(status, reason, FAILURE if status == "failed" else self.signals.exit_status) from error
        except BaseException as error:
            self._end(str(error) or type(error).__name__)
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
            What rank 0 says, which has made it before the first step; None if it is gone before that.
        """
        path = self._read("folder", 0.0)
        return None if path is None else Path(path)

    def leave(self) -> None:
        """Let all finish what they have in common, and rank 0 leave a finished run first.

        Where one leaves badly, ``torchrun`` ends the others at once; and where rank 0 leaves while another one still
        receives, that one's connection breaks.
        """
        if self._finished and self.keeps:
            end = monotonic() + GRACE
            for rank in self._others:
                self._read(_reason_key(rank), end - monotonic())
            with suppress(RuntimeError):
                assert self._store is not None
                self._store.set("over", "")
        elif self._finished:
            with suppress(ConnectionError):
                self._wait_for_rank_0()
        if self._group is not None:
            with suppress(RuntimeError):
                dist.destroy_process_group()

    def _wait_for_rank_0(self) -> None:
        end = monotonic() + TIMEOUT
        while not self._has("over") and not self._has(silence_key(0)) and monotonic() < end:
            sleep(_MOMENT)

    def end_without(self, ranks: list[int]) -> None:
        """End this process, where the loss of others has not ended its waiting for them.

        Args:
            ranks: those who are silent.
        """
        if self._finished or self._settled.wait(GRACE):
            return
        self._speak(f"this rank still waited for rank {' and '.join(map(str, ranks))} then")
        os._exit(FAILURE)

    def end_by_signal(self) -> None:
        """Say why this process ends, where a signal has not ended its waiting for others."""
        self._speak(self.signals.reason)

    def _speak(self, cause: str) -> None:
        status, reason = self._explain(cause)
        self.last_words(status, reason)
        if self.keeps:
            sys.stderr.write(f"targetprop: {reason}\n")

    def _end(self, reason: str) -> None:
        """Tell the others, once, why this rank ends; from here on nobody needs to end it."""
        self._settled.set()
        self.signals.settled.set()
        if self._store is not None and not self._told:
            self._told = True
            with suppress(RuntimeError):
                self._store.set(_reason_key(self.seat.rank), reason)

    def _explain(self, reason: str) -> tuple[str, str]:
        """Find out whether the run was stopped, or a rank failed: one that says so, or one that says nothing at all."""
        end, gone, hung = monotonic() + _PATIENCE, [], []
        for rank in self._others:
            silent = self._read(silence_key(rank), 0.0) is not None
            said = self._read(_reason_key(rank), 0.0 if silent else end - monotonic())
            if said is None:
                (hung if silent else gone).append(str(rank))
            elif said != _NOTHING:
                return "failed", f"rank {rank}: {said}"
        self.bereft = self.seat.rank == 1 and "0" in (*gone, *hung)
        if hung:
            who = f"rank {' and '.join(hung)} did not answer for {LOOKS * PERIOD:.0f} seconds"
            return "failed", f"{who}; it hung, or its machine is gone ({reason})"
        if gone:
            who = f"rank {' or '.join(gone)} gave no reason; the system may have killed it, for want of memory say"
            return "failed", f"{who} ({reason})"
        return ("failed", reason) if self.signals.received is None else ("interrupted", self.signals.reason)

    def _read(self, key: str, seconds: float) -> str | None:
        """Read a word that another rank leaves within some seconds; None without one, or where the store is gone."""
        assert self._store is not None
        end = monotonic() + seconds
        with suppress(RuntimeError, ConnectionError):
            while not self._has(key):
                if monotonic() >= end:
                    return None
                sleep(_MOMENT)
            return self._store.get(key).decode()
        return None

    def _has(self, key: str) -> bool:
        assert self._store is not None
        try:
            return self._store.check([key])
        except RuntimeError as error:
            raise ConnectionError("the store of the ranks is gone with the process that kept it") from error


def _reason_key(rank: int) -> str:
    return f"reason/{rank}"


def _ready_key(rank: int) -> str:
    return f"ready/{rank}"


@contextmanager
def join(seat: Seat) -> Iterator[Crew]:
    """Meet the other processes of the run.

    Args:
        seat: where this one stands.

    Yields:
        The crew, which has no group yet.

    Raises:
        CommandError: they do not meet.
    """
    if seat.size == 1:
        yield Crew(seat)
        return
    try:
        store = next(iter(rendezvous("env://", timeout=timedelta(seconds=MEETING))))[0]
        crew = Crew(seat, store)
        pulse = Pulse(seat, store.clone(), crew.end_without)  # pyright: ignore[reportAttributeAccessIssue]
    except (RuntimeError, ValueError) as error:
        raise CommandError(f"the {seat.size} processes of the run did not meet: {error}", FAILURE) from error
    try:
        with crew.signals, impatient(crew.signals, crew.end_by_signal), crew.heard():
            crew.meet(beat_key, "come", MEETING)
            pulse.start()
            yield crew
    finally:
        crew.leave()
        pulse.stop()
