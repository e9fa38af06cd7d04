"""A run's folder: made once, never overwritten; every file in it is replaced as a whole or appended line by line."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from targetprop.runs.atomic import append, staged, sync, write_atomic
from targetprop.runs.encode import encode_json, encode_line
from targetprop.runs.errors import RunError
from targetprop.runs.read import METRICS, SUMMARY

CONFIG = "config.yaml"


class RunFolder:
    """Writes what a run leaves behind."""

    def __init__(self, path: Path) -> None:
        """Keep the path, and count what is logged from here on."""
        self.path = path
        self._size, self._hash = 0, sha256()

    def write_config(self, text: str) -> None:
        """Replace ``config.yaml``."""
        write_atomic(self.path / CONFIG, text.encode())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replace ``summary.json``."""
        write_atomic(self.path / SUMMARY, encode_json(summary))

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        line = encode_line(record)
        append(self.path / METRICS, line)
        self._count(line)

    def mark(self) -> dict[str, Any]:
        """Bring ``metrics.jsonl`` down to the disk, and say how far it goes."""
        if self._size:
            sync(self.path / METRICS)
        return {"bytes": self._size, "sha256": self._hash.hexdigest()}

    def cut_back(self, mark: dict[str, Any] | None) -> bool:
        """Drop the metrics that were logged after a mark, and will be logged again; False where all are lost."""
        path = self.path / METRICS
        size, known = (mark["bytes"], mark["sha256"]) if mark else (0, sha256().hexdigest())
        if not path.exists():
            return size == 0
        content = path.read_bytes()
        kept = content[:size]
        if len(kept) < size or sha256(kept).hexdigest() != known:
            problem = f"{path} is damaged (its first {size} bytes are not those that the run wrote)"
            raise RunError(f"{problem}; put a copy back in its place, or take it away to go on without its curves")
        if kept != content:
            write_atomic(path, kept)
        self._count(kept)
        return True

    def _count(self, content: bytes) -> None:
        self._size += len(content)
        self._hash.update(content)


def create_run_folder(out: str | None, name: str) -> RunFolder:
    """Make a new folder for a run: the one asked for, or one of a free name under ``runs``."""
    try:
        if out is None:
            return RunFolder(_make_unique(Path("runs") / name))
        path = Path(out).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        if any(entry != staged(path / CONFIG) for entry in path.iterdir()):  # a crash at its first write is nothing
            raise RunError(f"--out {out} is not empty and nothing is overwritten; give a new folder", status=2)
        return RunFolder(path)
    except (FileExistsError, NotADirectoryError) as error:
        raise RunError(f"--out {out} is not a folder; give a new one", status=2) from error
    except OSError as error:
        raise RunError(f"the run folder cannot be made ({error}); give another with --out") from error


@contextmanager
def writing(run: Path) -> Iterator[None]:
    """Explain what keeps a run from beginning or going on."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{run} cannot be written to ({error}); put that right and try again") from error


def _make_unique(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    candidate, number = path, 1
    while True:
        try:
            candidate.mkdir()
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")
        else:
            return candidate
