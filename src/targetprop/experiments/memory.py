"""What does not fit in memory ends with a sentence, whichever allocator found out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from targetprop.experiments.errors import FAILURE, CommandError

# PyTorch has an exception of its own for GPUs only; on the CPU, these words tell it from other errors.
_WORDS = re.compile(
    r"DefaultCPUAllocator: (can't allocate memory|not enough memory)"
    r"|Storage size calculation overflowed|numel: integer multiplication overflow"
)
_SIZE = re.compile(r"tried to allocate [\d.]+ \w+", re.IGNORECASE)


class OutOfMemory(CommandError):
    """Something does not fit in memory."""

    def __init__(self, message: str) -> None:
        """Keep the message; the exit status is that of a failure."""
        super().__init__(message, FAILURE)


@contextmanager
def fitting(what: str, remedy: str = "make it smaller") -> Iterator[None]:
    """Name what does not fit in memory; every other error passes.

    >>> with fitting("the list"):
    ...     [0] * 2**60
    Traceback (most recent call last):
    targetprop.experiments.memory.OutOfMemory: the list does not fit in memory; make it smaller
    """
    try:
        yield
    except Exception as error:
        if not _ran_out(error):
            raise
        size = _SIZE.search(str(error))
        asked = f" ({size[0].lower()})" if size else ""
        raise OutOfMemory(f"{what} does not fit in memory{asked}; {remedy}") from error


def _ran_out(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None
