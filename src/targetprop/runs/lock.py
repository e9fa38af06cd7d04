"""The lock of a run's folder: one process trains a run at a time, and readers can tell a killed run from a live one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep

from targetprop.runs.errors import RunError
from targetprop.runs.status import fcntl, read_status


@contextmanager
def hold(run: Path) -> Iterator[None]:
    """Hold a run's lock; a disk or a system without locks is left without one."""
    if fcntl is None:
        yield
        return
    folder = os.open(run, os.O_RDONLY)
    try:
        if not (_lock(folder) or _lock(folder, after=0.1)):  # a reader that looks holds it for a moment
            sentence = read_status(run).sentence
            raise RunError(f"{sentence}, which holds its lock; wait for its end, or end it first")
        yield
    finally:
        os.close(folder)  # gives the lock back


def _lock(folder: int, after: float = 0.0) -> bool:
    assert fcntl is not None
    sleep(after)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the disk has no locks
        return True
    return True
