"""A run's folder: made once, never overwritten; every file in it is replaced as a whole or appended line by line."""

import json
import os
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.report.read_run import METRICS, SUMMARY, read_metrics

CONFIG = "config.yaml"


class RunFolder:
    """Writes what a run leaves behind.

    Args:
        path: the folder, which exists.
    """

    def __init__(self, path: Path) -> None:
        """Keep the path."""
        self.path = path

    def write_config(self, text: str) -> None:
        """Replace ``config.yaml``.

        Args:
            text: the complete configuration.
        """
        write_atomic(self.path / CONFIG, text.encode())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replace ``summary.json``.

        Args:
            summary: plain values.
        """
        write_atomic(self.path / SUMMARY, encode_json(summary))

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``.

        Args:
            record: plain values; "kind" says what they are.
        """
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(record), allow_nan=False) + "\n")

    def forget_after(self, epoch: int) -> None:
        """Drop the metrics of later epochs, which will be run again.

        Args:
            epoch: the last epoch that counts.

        Raises:
            CommandError: the file is damaged.
        """
        try:
            kept = [record for record in read_metrics(self.path) if record["epoch"] <= epoch]
        except (ValueError, KeyError, TypeError) as error:
            problem = f"{self.path / METRICS} is damaged ({error})"
            raise CommandError(f"{problem}; put a copy back in its place, or start a new run", FAILURE) from error
        write_atomic(self.path / METRICS, "".join(json.dumps(record) + "\n" for record in kept).encode())


def end_for_another(path: Path, reason: str) -> None:
    """Say in a run's summary that it failed, where the process that kept the run is gone.

    Args:
        path: the run's folder; nothing happens where it cannot be reached, or says already how it ended.
        reason: why it failed.
    """
    with suppress(OSError, ValueError):
        summary = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
        if summary["status"] == "running":
            RunFolder(path).write_summary(summary | {"status": "failed", "reason": reason})


def create_run_folder(out: str | None, name: str) -> RunFolder:
    """Make a new folder for a run.

    Args:
        out: the folder asked for; None makes ``runs/NAME``, numbered if there is one.
        name: the run's name.

    Returns:
        The folder.

    Raises:
        CommandError: the folder holds something already, or cannot be made.
    """
    try:
        if out is not None:
            path = Path(out).expanduser()
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
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


def encode_json(value: Any) -> bytes:
    """Write plain values for a person and a program to read.

    Args:
        value: dictionaries, lists and tuples of texts and numbers; NaN and infinity become null.

    Returns:
        The content of a file.
    """
    return f"{json.dumps(_finite(value), indent=2, allow_nan=False, ensure_ascii=False)}\n".encode()


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file, so that after a crash it is the old one or the new one.

    Args:
        path: the file.
        content: what it will hold.
    """
    stage(path, content)
    commit(path)


def staged(path: Path) -> Path:
    """Name the file that holds the next content of another until it is committed."""
    return path.with_name(f"{path.name}.new")


def stage(path: Path, content: bytes) -> None:
    """Write the next content of a file beside it, down to the disk.

    Args:
        path: the file.
        content: what it will hold; nothing is left of it where writing fails.
    """
    try:
        with staged(path).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        staged(path).unlink(missing_ok=True)
        raise


def commit(path: Path) -> None:
    """Put the staged content in the file's place.

    Args:
        path: the file.
    """
    staged(path).replace(path)
    with suppress(OSError):  # not every system can open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _finite(value: Any) -> Any:
    """Write null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
