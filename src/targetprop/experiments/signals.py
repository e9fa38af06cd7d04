"""Ctrl-C and SIGTERM: the first one asks for a stop after the step, a Ctrl-C after that stops at once."""

import signal
import threading
from types import FrameType
from typing import Any

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class StopSignals:
    """Hears of signals while a run trains, and leaves the process's own handlers as they were."""

    def __init__(self) -> None:
        """Hear of nothing yet."""
        self.received: int | None = None  # the signal that asked for a stop, of this process or of another rank
        self._heard = False  # by this process: what another rank was asked is no first Ctrl-C of this one
        self._before: dict[int, Any] = {}

    @property
    def reason(self) -> str:
        """Why the run stops, as its summary says it."""
        return f"stopped by {_NAMES[signal.Signals(self.received)]}"

    @property
    def exit_status(self) -> int:
        """What a shell reports for a process that the signal ended."""
        return 128 + (self.received or 0)

    def __enter__(self) -> "StopSignals":
        """Listen, where Python lets the thread; a signal that was ignored stays ignored."""
        if threading.current_thread() is threading.main_thread():
            for number in _NAMES:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        """Put the handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self._heard and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._heard, self.received = True, self.received or number


class Stopped(Exception):
    """A run was asked to stop, and its state is saved."""
