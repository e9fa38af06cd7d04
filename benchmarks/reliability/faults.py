"""An ``os`` for the module that writes all files of a run, with a fault at one of its calls: shared by the parts."""

import errno
import os
import signal
from collections.abc import Callable
from typing import Any

from targetprop.runs import atomic

_COUNTED = ("open", "write", "fsync", "replace")


class FaultyOs:
    """Passes every call on to ``os``, but for the one that is to fail, and perhaps all after it.

    Args:
        number: the call that fails, from 1 on; 0 for none.
        fault: is called in its place with the call's name and arguments.
        lasting: whether every later call fails as well.
    """

    def __init__(self, number: int = 0, fault: Callable[..., Any] | None = None, lasting: bool = False) -> None:
        """Count from 0."""
        self.calls, self._number, self._fault, self._lasting = 0, number, fault, lasting

    def __getattr__(self, name: str) -> Any:
        """Find a function of ``os``, watched if it changes files."""
        plain = getattr(os, name)
        return (lambda *arguments: self._call(name, plain, *arguments)) if name in _COUNTED else plain

    def install(self) -> None:
        """Take the place of ``os`` in this process, which is a child or counts only."""
        setattr(atomic, "os", self)  # noqa: B010

    def _call(self, name: str, plain: Callable[..., Any], *arguments: Any) -> Any:
        self.calls += 1
        hit = self.calls == self._number or (self._lasting and self.calls > self._number > 0)
        return self._fault(name, *arguments) if hit and self._fault is not None else plain(*arguments)


def die(name: str, *arguments: Any) -> None:
    """End the process as ``kill -9`` does, in the middle of a write."""
    if name == "write":
        os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def no_space(name: str, *arguments: Any) -> None:
    """Fail as a full disk does, which takes a part of what is written; renaming needs no space."""
    if name == "replace":
        return os.replace(*arguments)
    if name == "open" and not arguments[1] & os.O_CREAT:
        return os.open(*arguments)
    if name == "write":
        os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def count_calls(work: Callable[[], Any]) -> int:
    """Count the calls that a piece of work makes here."""
    counter = FaultyOs()
    counter.install()
    try:
        work()
    finally:
        setattr(atomic, "os", os)  # noqa: B010
    return counter.calls
