"""Ctrl-C and SIGTERM: the first one asks for a stop after the step, a Ctrl-C after that stops at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

GRACE = 10.0  # seconds to come to the end of a step; torchrun kills after 30
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class StopSignals:
    """Hears of signals while a run trains, and leaves the process's own handlers as they were.

    Attributes:
        received: the signal that asked for a stop; None while the run goes on.
        settled: set once the run is about to stop for it.
    """

    def __init__(self) -> None:
        """Hear of nothing yet."""
        self.received: int | None = None
        self.settled = threading.Event()
        self._before: dict[int, Any] = {}

    @property
    def name(self) -> str:
        """What the signal is called."""
        return _NAMES[signal.Signals(self.received)]

    @property
    def reason(self) -> str:
        """Why the run stops, as its summary says it."""
        return f"stopped by {self.name}"

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
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number


class Stopped(Exception):
    """A run was asked to stop, and its state is saved."""


@contextmanager
def impatient(signals: StopSignals, give_up: Callable[[], object]) -> Iterator[None]:
    """End the process if a signal does not: one that waits for another process in a call that nothing ends never looks.

    A thread that hears of the signals too then speaks for it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, wake = os.pipe()
    os.set_blocking(wake, False)

    def listen() -> None:
        while number := int.from_bytes(os.read(heard, 1)):
            if number in _NAMES and not signals.settled.wait(GRACE):
                signals.received = signals.received or number
                give_up()
                os._exit(signals.exit_status)

    thread = threading.Thread(target=listen, daemon=True)
    before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signals.settled.set()
        signal.set_wakeup_fd(before)
        os.close(wake)  # ends the thread's reading, if nothing was heard
        thread.join()
        os.close(heard)
