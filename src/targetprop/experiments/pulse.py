"""Tells a rank that hangs from one that is busy: a thread of each writes a number into the store every other second.

A process that was stopped, or whose machine is gone, writes no more; one that computes, reads or waits still does.
Rank 0 looks after all others, and they after rank 0. Silence is counted in the watcher's own looks, not in seconds:
where it has been stopped itself, or where the store does not answer, nobody is blamed.
"""

import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

from targetprop.experiments.board import beat_key, silence_key
from targetprop.experiments.seat import Seat

PERIOD = 2.0  # seconds between two looks
LOOKS = 10  # without news, until a rank counts as lost


class Pulse:
    """Writes and reads the numbers while the ranks are together."""

    def __init__(self, seat: Seat, store: Store, on_silence: Callable[[list[int]], object]) -> None:
        """Write the first number."""
        self._seat, self._store, self._on_silence = seat, store, on_silence
        self._over, self._beats = Event(), 0
        self._watched = list(range(1, seat.size)) if seat.rank == 0 else [0]
        self._heard: dict[int, str] = {}
        self._looks = dict.fromkeys(self._watched, 0)
        self._thread = Thread(target=self._beat_on, daemon=True)
        self._beat()

    def start(self) -> None:
        """Begin, once all ranks have written their first number."""
        self._thread.start()

    def stop(self) -> None:
        """Write no more; a thread that the store keeps waiting is left behind."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(PERIOD)

    def look(self) -> list[int]:
        """Look once whether there is news of the ranks that this one looks after."""
        self._beat()
        for rank, said in zip(self._watched, self._store.multi_get([beat_key(r) for r in self._watched]), strict=True):
            text = said.decode()
            self._looks[rank] = self._looks[rank] + 1 if text == self._heard.get(rank) else 0
            self._heard[rank] = text
        return [rank for rank, looks in self._looks.items() if looks >= LOOKS]

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(beat_key(self._seat.rank), f"{os.getpid()} {socket.gethostname()} {self._beats}")

    def _beat_on(self) -> None:
        with suppress(RuntimeError):  # the store is gone with the process that kept it, which others notice
            while not self._over.wait(PERIOD):
                if silent := self.look():
                    self._end(silent)
                    break
            else:
                return
            Thread(target=self._on_silence, args=(silent,), daemon=True).start()
            while not self._over.wait(PERIOD):  # this rank still lives, which the others look for
                self._beat()

    def _end(self, silent: list[int]) -> None:
        """End the processes of this machine that are silent: torchrun would wait half a minute for each."""
        for rank in silent:
            self._store.set(silence_key(rank), "")
            pid, host, _ = self._heard[rank].split(" ")
            if host == socket.gethostname() and is_sibling(int(pid)):
                with suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)


def is_sibling(pid: int) -> bool:
    """Ask whether another process has this one's parent, so that it must be a rank of the same run."""
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return False
    return pid != os.getpid() and parent == os.getppid()
