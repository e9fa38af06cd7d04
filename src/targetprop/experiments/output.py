"""What a command writes reaches its reader, or the command ends quietly where nobody reads any more."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from targetprop.experiments.errors import FAILURE

CLOSED = 141  # what a shell makes of a program that SIGPIPE ends, as ``head`` ends those it has read enough of


def deliver(command: Callable[[], int]) -> int:
    """Run a command and hand over all that it wrote."""
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()  # None where the caller closed them
    try:
        status = command()
        return _flush() or status
    except BrokenPipeError:
        _discard()
        return CLOSED


def _flush() -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard()
        sys.stderr.write(f"targetprop: the output cannot be written ({error}); put that right and try again\n")
        return FAILURE
    return 0


def _discard() -> None:
    """Send nowhere what is still in the buffers, of which Python would complain at its end."""
    with _nowhere() as nowhere:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                with suppress(OSError):  # a stream without a file is nobody's pipe
                    os.dup2(nowhere.fileno(), stream.fileno())


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")
