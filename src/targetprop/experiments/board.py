"""Where the ranks of a run leave words for each other, beside what they compute together."""

from contextlib import suppress
from time import monotonic, sleep

from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

_MOMENT = 0.05  # seconds between two looks; waiting inside the store would end in its own warnings


class Board:
    """The store by which the ranks met.

    Attributes:
        store: the same.
    """

    def __init__(self, store: Store) -> None:
        """Keep it."""
        self.store = store

    def leave(self, key: str, text: str = "") -> None:
        """Leave a word, if the store is still there."""
        with suppress(RuntimeError):
            self.store.set(key, text)

    def has(self, key: str) -> bool:
        """Look whether a word was left."""
        try:
            return self.store.check([key])
        except RuntimeError as error:
            raise ConnectionError("the store of the ranks is gone with the process that kept it") from error

    def read(self, key: str, seconds: float = 0.0) -> str | None:
        """Read a word."""
        end = monotonic() + seconds
        with suppress(RuntimeError, ConnectionError):
            while not self.has(key):
                if monotonic() >= end:
                    return None
                pause()
            return self.store.get(key).decode()
        return None


def pause() -> None:
    """Wait a moment before the next look."""
    sleep(_MOMENT)


def reason_key(rank: int) -> str:
    """Name the word that says why a rank ended."""
    return f"reason/{rank}"


def come_key(rank: int) -> str:
    """Name the word that says that a rank is there, and its pulse with it."""
    return f"come/{rank}"


def ready_key(rank: int) -> str:
    """Name the word that says that a rank has its data."""
    return f"ready/{rank}"


def beat_key(rank: int) -> str:
    """Name the word that a rank keeps writing."""
    return f"beat/{rank}"


def silence_key(rank: int) -> str:
    """Name the word that says that a rank was lost in silence."""
    return f"silent/{rank}"
