"""Records a run while it trains: metrics, checkpoints every few minutes, a true summary, and how it ended."""

import errno
from contextlib import suppress
from math import ceil
from pathlib import Path
from time import monotonic
from typing import Any

from targetprop.experiments.config import RunConfig
from targetprop.experiments.data import Dataset
from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.experiments.live import NotebookFigure, Pace
from targetprop.experiments.loggers import RunLogger
from targetprop.experiments.progress import TrainingProgress, show_summary
from targetprop.experiments.same_config import fixed_values
from targetprop.experiments.signals import Stopped, StopSignals
from targetprop.experiments.state import TrainState
from targetprop.experiments.summary import summarise
from targetprop.report.curves import draw_curves
from targetprop.runs.checkpoint import save_checkpoint
from targetprop.runs.folder import RunFolder
from targetprop.runs.read import read_metrics, read_summary

_GROWN = 1.5  # times the loss of the first step: more than noise, less than any explosion
_FULL = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG")}


class RunRecorder:
    """Writes what a run leaves behind; later ranks, which have no folder, only agree with the first."""

    def __init__(
        self, config: RunConfig, state: TrainState, data: Dataset, folder: RunFolder | None, saved: int | None = None
    ) -> None:
        """Start the clock of the checkpoints."""
        self.config, self.state, self._saved = config, state, saved
        self._data, self._folder, self._fixed = data, folder, fixed_values(config)
        self._patience, self._saved_at = 60 * config.loop.checkpoint_minutes, monotonic()
        self.signals = StopSignals()
        self._logger = RunLogger(config, None if folder is None else folder.path)
        self._pace, self._figure = Pace(), NotebookFigure()
        steps = ceil(len(data.train_x) / config.loop.batch_size)
        self.progress = TrainingProgress(config.loop.epochs, steps, state.epoch, state.step)

    def on_step(self, record: dict[str, Any] | None) -> None:
        """Log a step, save the run if it is time to, and stop if a rank was asked to."""
        self.progress.on_step(record)
        if record is not None:
            self._log(record)
        due = self.state.processes.rank == 0 and monotonic() >= self._saved_at + self._patience
        stop, save = self._agree(due)
        if stop or save:
            self._save()
        if stop:
            raise Stopped

    def on_skip(self, record: dict[str, Any]) -> None:
        """Log a step that was skipped."""
        self._log(record)

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Log an epoch, save the run, stop if a rank was asked to, and redraw the curves if that is cheap."""
        self.progress.on_epoch(record)
        self._log(record)
        stop, _ = self._agree()
        self._save()
        if stop and self.state.epoch < self.config.loop.epochs:
            raise Stopped
        if self.state.epoch < self.config.loop.epochs:
            self._pace(self.draw)

    def write(self, status: str, reason: str | None = None, *, diverged: bool = False) -> None:
        """Write the summary."""
        if self._folder is not None:
            summary = summarise(self.config, self.state, self._data, status, reason, self._saved)
            self._folder.write_summary(summary | {"diverged": diverged})
        if status != "running":
            self._logger.close(status)

    def draw(self) -> None:
        """Draw the curves, where an epoch is done."""
        if self._folder is not None and self.state.epoch:
            self._figure.show(draw_curves(self._folder.path))

    def finish(self) -> None:
        """Write that the run is finished, and where its loss has grown, that too."""
        if self._folder is None:
            return
        losses = (record["loss"] for record in read_metrics(self._folder.path) if record["kind"] == "step")
        first, last = next(losses, None), self.state.last["train_loss"]
        grown = first is not None and last > _GROWN * first
        reason = f"the training loss grew from {first:.3g} to {last:.3g}; lower --optimizer.lr" if grown else None
        self.write("finished", reason, diverged=grown)

    def show(self) -> None:
        """Print the summary of a finished run."""
        if self._folder is not None:
            show_summary(read_summary(self._folder.path), self._folder.path)

    def stop(self, reason: str) -> str:
        """Write that the run was interrupted; returns the sentence that says so."""
        self.write("interrupted", reason)
        self.draw()
        return f"{reason} after step {self.state.step}; {self._way_on}"

    def fail(self, error: Exception) -> CommandError:
        """Say that the run has failed; returns what ends the command."""
        reason = self.state.processes.explain(error)
        with suppress(OSError):
            self.write("failed", reason, diverged=isinstance(error, FloatingPointError))
            self.draw()
        epoch = min(self.state.epoch + 1, self.config.loop.epochs)
        problem = f"the run in {self._path} failed in epoch {epoch}: {reason}"
        if isinstance(error, OSError):
            remedy = "free some space on its disk" if error.errno in _FULL else "put that right"
            problem = f"{problem}; {remedy}, then {self._way_on}"
        return CommandError(problem, FAILURE)

    def _agree(self, due: bool = False) -> tuple[bool, bool]:
        """Decide with all other ranks whether to stop, and whether to save."""
        received, save = self.state.processes.largest(self.signals.received or 0, int(due))
        if received:
            self.signals.received = received
        return bool(received), bool(save)

    def _log(self, record: dict[str, Any]) -> None:
        if self._folder is not None:
            self._folder.log(record)
        self._logger.log(record)

    def _save(self) -> None:
        """Write a checkpoint, and the summary that belongs to it."""
        state = self.state.state_dict()
        if self._folder is not None:
            mark = self._folder.mark()
            save_checkpoint(self._folder.path, {**state, "config": self._fixed, "metrics": mark})
        self._saved, self._saved_at = self.state.step, monotonic()
        self.write("running")

    @property
    def _path(self) -> Path | None:
        return None if self._folder is None else self._folder.path

    @property
    def _way_on(self) -> str:
        return f"targetprop train --resume {self._path} goes on after step {self._saved or 0}"
