"""The processes of one run: how they agree, and how all end when one does.

Rank 0 keeps the run's folder. A rank that ends early leaves its reason in the store by which they met; rank 0 reads it
there when it finds the others gone, so that ``summary.json`` says what happened and not merely that somebody left.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Event
from time import monotonic

from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

from targetprop.experiments.board import Board, beat_key, pause, reason_key, silence_key
from targetprop.experiments.errors import FAILURE
from targetprop.experiments.loop import Session
from targetprop.experiments.pulse import LOOKS, PERIOD
from targetprop.experiments.seat import Seat
from targetprop.experiments.stop_signals import GRACE, StopSignals
from targetprop.experiments.streams import gather_streams

TIMEOUT = 600.0  # seconds that a rank waits for another one that lives
_PATIENCE = 2.0  # seconds that the ranks which ended have to say why
_NOTHING = "-"  # what a rank leaves that finished, or ended because of others


class Lost(Exception):
    """The run ended early by the fault of another rank."""

    def __init__(self, status: str, reason: str, code: int, speaks: bool) -> None:
        """Keep all."""
        super().__init__(reason)
        self.status, self.reason, self.code, self.speaks = status, reason, code, speaks


class Crew:
    """This process and the others of its run.

    Attributes:
        signals: what may ask this rank, and with it all, to stop.
        bereft: whether rank 0 is gone without a word, and it falls to this one to say so.
        last_words: told status and reason where this process hangs in a call that nothing ends.
    """

    def __init__(self, seat: Seat, store: Store | None = None) -> None:
        """Keep all."""
        self.seat, self._board = seat, None if store is None else Board(store)
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
        """Leave a word, and wait until all ranks have."""
        if self._board is None:
            return
        self._board.leave(key(self.seat.rank))
        end = monotonic() + seconds
        for rank in self._others:
            while not self._board.has(key(rank)):
                if self._board.has(reason_key(rank)) or self._board.has(silence_key(rank)):
                    raise ConnectionError(f"rank {rank} has ended")
                if self.signals.received:
                    raise ConnectionError(f"{self.signals.reason} before rank {rank} could {what}")
                if monotonic() > end:
                    raise ConnectionError(f"rank {rank} did not {what} within {seconds:.0f} seconds")
                pause()

    def agree(self, session: Session, *, save: bool = False, epoch: bool = False) -> tuple[bool, bool]:
        """Decide between two steps with all other ranks, which all ask at the same place."""
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
        """Hear of signals in a process that trains alone; one of several has heard of them since they met."""
        return self.signals if self._board is None else nullcontext()

    def work(self, action: Callable[[], int]) -> int:
        """Do this rank's part of the run."""
        with self.heard():
            code = action()
            if self._board is not None:
                self._finished = True
                self._end(_NOTHING)
        return code

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Leave the reason for the others if this rank ends early, and look for theirs if they have."""
        try:
            yield
        except ConnectionError as error:
            if isinstance(error, BrokenPipeError):  # this rank's own screen, not another rank
                self._end("nobody reads its output any more")
            if isinstance(error, BrokenPipeError) or self._board is None:
                raise
            self._end(_NOTHING)
            status, reason = self._explain(self._board, str(error))
            code = FAILURE if status == "failed" else self.signals.exit_status
            raise Lost(status, reason, code, self.keeps or self.bereft) from error
        except BaseException as error:
            self._end(str(error) or type(error).__name__)
            raise

    def leave_folder(self, path: Path) -> None:
        """Tell the other ranks where the run is kept."""
        if self._board is not None:
            self._board.leave("folder", str(path.absolute()))

    def find_folder(self) -> Path | None:
        """Look where the run is kept."""
        path = None if self._board is None else self._board.read("folder")
        return None if path is None else Path(path)

    def leave(self) -> None:
        """Leave a finished run when all are done with what they have in common, rank 0 first.

        Where one leaves badly, ``torchrun`` ends the others at once; and where rank 0 leaves while another one still
        receives, that one's connection breaks.
        """
        if self._board is None or not self._finished:
            return
        if self.keeps:
            end = monotonic() + GRACE
            for rank in self._others:
                self._board.read(reason_key(rank), end - monotonic())
            self._board.leave("over")
            return
        end = monotonic() + TIMEOUT
        with suppress(ConnectionError):
            while not self._board.has("over") and not self._board.has(silence_key(0)) and monotonic() < end:
                pause()

    def end_without(self, ranks: list[int]) -> None:
        """End this process, where the loss of others has not ended its waiting for them."""
        if not self._finished and not self._settled.wait(GRACE):
            self._speak(f"this rank still waited for rank {' and '.join(map(str, ranks))} then")
            os._exit(FAILURE)

    def end_by_signal(self) -> None:
        """Say why this process ends, where a signal has not ended its waiting for others."""
        self._speak(self.signals.reason)

    def _speak(self, cause: str) -> None:
        assert self._board is not None
        status, reason = self._explain(self._board, cause)
        self.last_words(status, reason)
        if self.keeps or self.bereft:
            sys.stderr.write(f"targetprop: {reason}\n")

    def _end(self, reason: str) -> None:
        """Tell the others, once, why this rank ends; from here on nobody needs to end it."""
        self._settled.set()
        self.signals.settled.set()
        if self._board is not None and not self._told:
            self._told = True
            self._board.leave(reason_key(self.seat.rank), reason)

    def _explain(self, board: Board, reason: str) -> tuple[str, str]:
        """Find out whether the run was stopped, or a rank failed: one that says so, or one that says nothing at all."""
        end, gone, hung = monotonic() + _PATIENCE, [], []
        for rank in self._others:
            silent = board.read(silence_key(rank)) is not None
            said = board.read(reason_key(rank), 0.0 if silent else end - monotonic())
            if said is None:
                (hung if silent else gone).append(str(rank))
            elif said != _NOTHING:
                return "failed", f"rank {rank}: {said}"
        self.bereft = self.seat.rank == 1 and ("0" in hung or ("0" in gone and not _lives(board, 0)))
        if hung:
            who = f"rank {' and '.join(hung)} did not answer for {LOOKS * PERIOD:.0f} seconds"
            return "failed", f"{who}; it hung, or its machine is gone ({reason})"
        if gone:
            who = f"rank {' or '.join(gone)} gave no reason; the system may have killed it, for want of memory say"
            return "failed", f"{who} ({reason})"
        return ("failed", reason) if self.signals.received is None else ("interrupted", self.signals.reason)


def _lives(board: Board, rank: int) -> bool:
    """Look whether a rank goes on writing its word: of many, one may still wait for this one to leave."""
    before, end = board.read(beat_key(rank)), monotonic() + 2 * _PATIENCE
    while board.read(beat_key(rank)) == before and monotonic() < end:
        pause()
    return board.read(beat_key(rank)) not in (None, before)
