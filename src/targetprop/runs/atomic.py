"""Files that are never half-written: new content goes beside a file, down to the disk, and then takes its place."""

import os
from contextlib import suppress
from pathlib import Path

_BINARY = getattr(os, "O_BINARY", 0)  # only Windows tells texts from bytes


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file, so that after a crash it is the old one or the new one."""
    try:
        file = os.open(staged(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _BINARY, 0o666)
        try:
            _write(file, content)
            os.fsync(file)
        finally:
            os.close(file)
    except BaseException:
        staged(path).unlink(missing_ok=True)
        raise
    os.replace(staged(path), path)
    with suppress(OSError):  # not every system can open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def staged(path: Path) -> Path:
    """Name the file that holds the next content of another until it takes its place."""
    return path.with_name(f"{path.name}.new")


def append(path: Path, content: bytes) -> None:
    """Write at the end of a file, which is left as it was where that fails."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _BINARY, 0o666)
    try:
        size = os.fstat(file).st_size
        try:
            _write(file, content)
        except BaseException:
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def sync(path: Path) -> None:
    """Bring what was appended down to the disk."""
    file = os.open(path, os.O_WRONLY | _BINARY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _write(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:  # a full disk takes a part first, and refuses the next call
        rest = rest[os.write(file, rest) :]
