"""What to do when the system or a person asks a run to end: Ctrl-C, and the SIGTERM of schedulers and ``torchrun``."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 10.0  # seconds to come to the end of a step; torchrun kills after 30
_REASONS: dict[int, str] = {signal.SIGINT: "stopped by Ctrl-C", signal.SIGTERM: "stopped by SIGTERM"}


class Terminated(KeyboardInterrupt):
    """SIGTERM, where it is to end a run as Ctrl-C does."""


class Signals:
    """Listens for signals.

    Attributes:
        number: the signal that was heard; 0 so far.
    """

    def __init__(self) -> None:
        """Hear nothing yet."""
        self.number = 0

    @property
    def reason(self) -> str | None:
        """What was heard, as the end of a run's summary; None if nothing was."""
        return _REASONS.get(self.number)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Let SIGTERM raise `Terminated` wherever the program is; Ctrl-C raises ``KeyboardInterrupt`` as ever.

        Yields:
            Nothing.
        """

        def end(number: int, frame: FrameType | None) -> None:
            self.number = number
            raise Terminated

        with _handling([signal.SIGTERM], end):
            yield

    @contextmanager
    def noting(self, give_up: Callable[[str], None]) -> Iterator[None]:
        """Only note signals, for a program that looks at `reason` between its steps.

        A program that waits for another process in a call that nothing ends never looks; a thread that listens too then
        speaks for it and ends the process.

        Args:
            give_up: told the reason by that thread.

        Yields:
            Nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        over = threading.Event()
        heard, wake = os.pipe()
        os.set_blocking(wake, False)

        def listen() -> None:
            while number := int.from_bytes(os.read(heard, 1)):
                if number not in _REASONS:
                    continue
                self.number = number
                if not over.wait(GRACE):
                    give_up(_REASONS[number])
                    os._exit(128 + number)

        thread = threading.Thread(target=listen, daemon=True)
        with _handling([signal.SIGINT, signal.SIGTERM], lambda number, frame: None):
            before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
            thread.start()
            try:
                yield
            finally:
                over.set()
                signal.set_wakeup_fd(before)
                os.close(wake)  # ends the thread's reading, if nothing was heard
                thread.join()
                os.close(heard)


@contextmanager
def _handling(numbers: list[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals for a while, in the main thread; other threads may not."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
