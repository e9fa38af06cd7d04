"""A run that trains in a process of its own, with one thread, and goes on where it was stopped."""

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from threading import Thread
from traceback import format_exc
from typing import Any

import torch

from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.experiments.train import train
from targetprop.runs.errors import RunError
from targetprop.runs.folder import CONFIG, RunFolder
from targetprop.runs.read import METRICS, read_metrics, read_summary
from targetprop.runs.status import RunStatus, read_status

# What runs import, with what they import only when they use it: the embedded data, an optimiser's first step, a figure.
_IMPORTED = ["targetprop.experiments.train", "sklearn.datasets", "torch._dynamo", "matplotlib.backends.backend_agg"]


@dataclass(frozen=True)
class Plan:
    """A run that is to be made: its folder, and its settings as texts by dotted name."""

    path: Path
    values: Mapping[str, str]
    epochs: int

    @property
    def words(self) -> list[str]:
        """The command line of ``targetprop train``, for a new run or one that goes on."""
        if (self.path / CONFIG).is_file():
            return ["--resume", str(self.path)]
        return [*(f"--{name}={text}" for name, text in self.values.items()), f"--out={self.path}"]

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do; a run that diverged would do so again."""
        status = read_status(self.path)
        return status.word in ("finished", "pruned") or (status.word == "failed" and has_diverged(self.path))


class RunProcess:
    """The process of a run."""

    def __init__(self, plan: Plan) -> None:
        """Start it."""
        self.plan, self.pruned = plan, ""
        self._size = -1
        self._heard, told = _context().Pipe(duplex=False)
        self._process: Any = _context().Process(target=_work, args=(plan.words, told))  # pyright: ignore[reportAttributeAccessIssue]
        self._process.start()
        told.close()

    @property
    def sentinel(self) -> int:
        """What becomes ready when the process ends."""
        return self._process.sentinel

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return not self._process.is_alive()

    def new_epochs(self) -> list[dict[str, Any]] | None:
        """Read all epochs, if anything was recorded since the last call."""
        path = self.plan.path / METRICS
        size = path.stat().st_size if path.exists() else -1
        if size == self._size:
            return None
        self._size = size
        return read_epochs(self.plan.path)

    def prune(self, reason: str) -> None:
        """Ask for a stop, because the run is not worth its time."""
        self.pruned = reason
        self.stop()

    def stop(self) -> None:
        """Ask for a stop after the step, with a checkpoint."""
        self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def finish(self) -> RunStatus:
        """Wait for the end, and look how the run ended; what ended it too early raises `CommandError`."""
        self._process.join()
        path, status = self.plan.path, read_status(self.plan.path)
        told = self._told()
        if self.pruned and status.word == "interrupted":
            RunFolder(path).write_summary({**read_summary(path), "status": "pruned", "reason": self.pruned})
            return read_status(path)
        if status.word == "finished" or (status.word == "failed" and has_diverged(path)):
            return status
        reason = told or f"its process ended with status {self._process.exitcode} and no word"
        raise CommandError(f"the run {path} did not come to its end: {reason}", FAILURE)

    def _told(self) -> str:
        try:
            return self._heard.recv() if self._heard.poll() else ""
        except EOFError:
            return ""


def has_diverged(path: Path) -> bool:
    """Tell whether a run's numbers have left their range."""
    return bool(read_summary(path).get("diverged"))


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """Read what a run has recorded after its epochs."""
    return [record for record in read_metrics(path) if record["kind"] == "epoch"]


@cache
def _context() -> BaseContext:
    """Choose how processes start: from one that has imported everything, where the system can fork."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


def _work(words: list[str], told: Connection) -> None:
    """Train; what goes wrong is told in a sentence."""
    Thread(target=_follow, daemon=True).start()
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")
    try:
        status = train(words)
    except (CommandError, RunError) as error:
        told.send(str(error))
        status = error.status
    except KeyboardInterrupt:  # of a terminal, which sends it to all; the parent says so
        status = 130
    except Exception:
        told.send(format_exc())
        status = FAILURE
    sys.exit(status)


def _follow() -> None:
    """Stop, with a checkpoint, when the process that started this one is gone."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
