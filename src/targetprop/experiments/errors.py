"""The one exception that ends a command with a sentence instead of a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches

USAGE, FAILURE = 2, 1


class CommandError(Exception):
    """Something the user can put right."""

    def __init__(self, message: str, status: int = USAGE) -> None:
        """Keep message and status."""
        super().__init__(" ".join(message.split()))
        self.status = status


def suggest(name: str, known: Iterable[str]) -> str:
    """Say which names exist."""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(names)}"
