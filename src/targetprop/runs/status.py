"""What a run is doing, as far as its folder can tell: a summary that says "running" is believed only with proof.

A run that trains holds a lock on its folder, which the system takes back when the process ends, however it ends.
"""

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from targetprop.runs.read import read_summary

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None


class RunStatus(NamedTuple):
    """What a run is doing."""

    word: str  # finished, interrupted, pruned, failed, running, killed, "running or killed", or unknown
    sentence: str  # the same with what is known about it
    saved: int | None = None  # steps done by its checkpoint when the summary was written; None without one


def read_status(run: Path) -> RunStatus:
    """Find out what a run is doing."""
    try:
        summary = read_summary(run)
    except (OSError, ValueError) as error:
        return RunStatus("unknown", f"what became of {run} is unknown ({error})")
    word, saved = summary.get("status"), summary.get("checkpoint_step")
    if word in ("finished", "interrupted", "pruned", "failed"):
        reason = summary.get("reason")
        return RunStatus(word, f"{run} is {word}" + (f" ({reason})" if reason else ""), saved)
    if word != "running":
        return RunStatus("unknown", f"what became of {run} is unknown (its summary has the status {word!r})")
    return RunStatus(*_believe(run, summary), saved)


def is_held(run: Path) -> bool | None:
    """Ask whether a process holds the lock of a run; None where that cannot be known."""
    if fcntl is None:
        return None
    try:
        folder = os.open(run, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(folder)  # gives the lock back
    return False


def _believe(run: Path, summary: dict[str, Any]) -> tuple[str, str]:
    """Find word and sentence for a summary that says "running"."""
    host, process, heard = (summary.get(key, "unknown") for key in ("host", "pid", "updated"))
    held = is_held(run)
    if held:
        return "running", f"{run} is being trained by process {process} on {host}"
    if host != socket.gethostname():
        return "running or killed", f"{run} is running on {host} or was killed there; it was last heard of at {heard}"
    if held is None and _is_alive(process):
        return "running", f"{run} is being trained by process {process}"
    return "killed", f"{run} was killed; it was last heard of at {heard}"


def _is_alive(process: Any) -> bool:
    with suppress(OSError, TypeError, OverflowError):
        os.kill(process, 0)
        return True
    return False
