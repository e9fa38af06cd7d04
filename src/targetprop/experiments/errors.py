"""What ends a command with a sentence instead of a traceback."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

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


def make_folder(out: str) -> Path:
    """Make the folder of a command's results."""
    try:
        (folder := Path(out).expanduser()).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--out {out} cannot be made ({error}); give another folder") from error
    return folder


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Say where results cannot be written."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"the results cannot be written into {folder} ({error})", FAILURE) from error
