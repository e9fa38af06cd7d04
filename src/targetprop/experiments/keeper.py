"""Keeps a run while it trains: metrics, checkpoints every few minutes, a true summary, and a stop when asked for."""

from time import monotonic
from typing import Any

from targetprop.experiments.checkpoint import save_checkpoint
from targetprop.experiments.config import RunConfig
from targetprop.experiments.crew import Crew
from targetprop.experiments.data import Dataset
from targetprop.experiments.loop import Session
from targetprop.experiments.run_folder import RunFolder
from targetprop.experiments.same_config import fixed_values
from targetprop.experiments.session import session_state
from targetprop.experiments.stop_signals import Stopped
from targetprop.experiments.summary import summarise


class Keeper:
    """Writes what a run leaves behind, between its steps."""

    def __init__(
        self,
        config: RunConfig,
        session: Session,
        data: Dataset,
        folder: RunFolder,
        crew: Crew,
        saved: int | None = None,
    ) -> None:
        """Start the clock of the checkpoints."""
        self.config, self.session, self.folder, self.saved = config, session, folder, saved
        self._data, self._crew, self._fixed = data, crew, fixed_values(config)
        self._patience, self._saved_at = 60 * config.loop.checkpoint_minutes, monotonic()

    def on_step(self, record: dict[str, Any] | None) -> None:
        """Log a step, and save the run if it is time to."""
        if record is not None:
            self.folder.log(record)
        stop, save = self._crew.agree(self.session, save=monotonic() >= self._saved_at + self._patience)
        if save:
            self.save()
        if stop:
            raise Stopped

    def on_skip(self, record: dict[str, Any]) -> None:
        """Log a step that was skipped."""
        self.folder.log(record)

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Log an epoch and save the run."""
        self.folder.log(record)
        stop, _ = self._crew.agree(self.session, epoch=True)
        self.save()
        if stop and self.session.epoch < self.config.loop.epochs:
            raise Stopped

    def save(self) -> None:
        """Write a checkpoint, and the summary that belongs to it."""
        mark = self.folder.mark()
        save_checkpoint(self.folder.path, {**session_state(self.session), "config": self._fixed, "metrics": mark})
        self.saved, self._saved_at = self.session.step, monotonic()
        self.write("running")

    def write(self, status: str, reason: str | None = None) -> dict[str, Any]:
        """Write the summary."""
        summary = summarise(self.config, self.session, self._data, status, reason, self.saved)
        self.folder.write_summary(summary)
        return summary
