"""Damaged versions of a file's content, and what the command line makes of them: shared by the parts."""

import hashlib
import io
import random
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from targetprop.experiments.main import main

PATIENCE = 60  # seconds; on an idle machine everything asked for here takes less than one
STRANGE = {
    "nothing": b"",
    "zeros": bytes(64),
    "binary": bytes(range(256)),
    "list": b"[]\n",
    "entries": b"{}\n",
    "null": b"null\n",
    "number": b"7\n",
    "deep list": b"[" * 5000,
    "version": b'{"version": 2}\n',
    "pickle": b"cposix\nsystem\n(S'false'\ntR.",
    "text": "ä line of text\n".encode(),
    "latin": b"\xe4\xf6\xfc\n",
}


def damages(content: bytes, chance: random.Random, flips: int) -> Iterator[tuple[str, bytes]]:
    """Damage a file's content in many ways.

    Args:
        content: the sound content.
        chance: draws places and values.
        flips: how many single bits, bytes and pieces are changed, each.

    Yields:
        What was done, and the damaged content.
    """
    size = len(content)
    for length in sorted({1, 4, 8, size // 4, size // 2, size - 1, *(chance.randrange(size) for _ in range(3))}):
        if 0 < length < size:
            yield f"cut to {length}", content[:length]
    for extra in (b"\0", b"\n", b"x", chance.randbytes(100), content):
        yield f"longer by {len(extra)}", content + extra
    for name, strange in STRANGE.items():
        yield f"replaced by {name}", strange
    for _ in range(flips):
        place = chance.randrange(size)
        yield (
            f"bit at {place}",
            content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :],
        )
        place, value = chance.randrange(size), chance.randrange(256)
        yield f"byte at {place} to {value}", content[:place] + bytes([value]) + content[place + 1 :]
        place, length = chance.randrange(size), chance.randrange(1, 9)
        yield f"{length} bytes out at {place}", content[:place] + content[place + length :]
        yield f"{length} zeros at {place}", content[:place] + bytes(length) + content[place + length :]


class Answer(NamedTuple):
    """What a command did.

    Attributes:
        status: its exit status; None where it raised or took too long.
        error: what it wrote to the error stream, or the traceback.
    """

    status: int | None
    error: str

    @property
    def is_sentence(self) -> bool:
        """Whether it is a refusal in one sentence."""
        return self.status in (1, 2) and self.error.startswith("targetprop: ") and self.error.count("\n") == 1


class _TooLong(BaseException):
    """Nothing catches it."""


def ask(*arguments: object) -> Answer:
    """Run a command in this process, for a limited time."""

    def stop(*_: object) -> None:
        raise _TooLong

    out, error = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        with redirect_stdout(out), redirect_stderr(error):
            return Answer(main([str(argument) for argument in arguments]), error.getvalue())
    except _TooLong:
        return Answer(None, f"took more than {PATIENCE} s")
    except BaseException:
        return Answer(None, traceback.format_exc()[-600:])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def hashes(folder: Path) -> dict[str, str]:
    """Fingerprint the files of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def add(figures: dict[str, Any], names: Sequence[str], failure: str | None = None) -> None:
    """Count in nested figures, and note a failure."""
    place = figures
    for name in names[:-1]:
        place = place.setdefault(name, {})
    place[names[-1]] = place.get(names[-1], 0) + 1
    if failure is not None:
        figures.setdefault("failures", []).append(failure)
