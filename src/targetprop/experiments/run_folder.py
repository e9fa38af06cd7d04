"""A run's folder: made once, never overwritten; every file in it is replaced as a whole or appended line by line."""

import json
from collections.abc import Container
from contextlib import suppress
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.report.atomic import append, staged, sync, write_atomic
from targetprop.report.read_run import METRICS, SUMMARY, read_metrics

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
        """Bring ``metrics.jsonl`` down to the disk."""
        if self._size:
            sync(self.path / METRICS)
        return {"bytes": self._size, "sha256": self._hash.hexdigest()}

    def cut_back(self, mark: dict[str, Any]) -> bool:
        """Drop the metrics that were logged after a mark, and will be logged again."""
        path, (size, known) = self.path / METRICS, (mark["bytes"], mark["sha256"])
        if not path.exists():
            return size == 0
        content = path.read_bytes()
        kept = content[:size]
        if len(kept) < size or sha256(kept).hexdigest() != known:
            problem = f"{path} is damaged (its first {size} bytes are not those that the run wrote)"
            way_out = "put a copy back in its place, or take it away to go on without its curves"
            raise CommandError(f"{problem}; {way_out}", FAILURE)
        if kept != content:
            write_atomic(path, kept)
        self._count(kept)
        return True

    def forget_after(self, epoch: int) -> bool:
        """Drop the metrics of later epochs, for a checkpoint that marks no place in them."""
        try:
            kept = [record for record in read_metrics(self.path) if record["epoch"] <= epoch]
        except (ValueError, KeyError, TypeError) as error:
            problem = f"{self.path / METRICS} is damaged ({error})"
            raise CommandError(f"{problem}; put a copy back in its place, or start a new run", FAILURE) from error
        content = b"".join(map(encode_line, kept))
        write_atomic(self.path / METRICS, content)
        self._count(content)
        return True

    def _count(self, content: bytes) -> None:
        self._size += len(content)
        self._hash.update(content)


def end_for_another(path: Path, reason: str, instead: Container[str] = ("running",)) -> None:
    """Say in a run's summary that it failed, where nobody keeps the run: its keeper is gone, or did not come so far."""
    with suppress(OSError, ValueError):
        summary = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
        if summary["status"] in instead:
            RunFolder(path).write_summary(summary | {"status": "failed", "reason": reason})


def create_run_folder(out: str | None, name: str) -> RunFolder:
    """Make a new folder for a run."""
    try:
        if out is not None:
            path = Path(out).expanduser()
            path.mkdir(parents=True, exist_ok=True)
            if any(entry != staged(path / CONFIG) for entry in path.iterdir()):  # a crash at its first write is nothing
                raise CommandError(f"--out {out} is not empty and nothing is overwritten; give a new folder")
            return RunFolder(path)
        return RunFolder(_make_unique(Path("runs") / name))
    except (FileExistsError, NotADirectoryError) as error:
        raise CommandError(f"--out {out} is not a folder; give a new one") from error
    except OSError as error:
        raise CommandError(f"the run folder cannot be made ({error}); give another with --out", FAILURE) from error


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


def encode_line(record: dict[str, Any]) -> bytes:
    """Write plain values as a line of a JSON Lines file."""
    return f"{json.dumps(_finite(record), allow_nan=False)}\n".encode()


def encode_json(value: Any) -> bytes:
    """Write plain values for a person and a program to read."""
    return f"{json.dumps(_finite(value), indent=2, allow_nan=False, ensure_ascii=False)}\n".encode()


def _finite(value: Any) -> Any:
    """Write null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
