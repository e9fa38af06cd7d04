"""Stands in the keeper's place on every rank but the first, which leaves the run's folder to that one."""

from pathlib import Path
from typing import Any

from targetprop.experiments.config import RunConfig
from targetprop.experiments.crew import Crew
from targetprop.experiments.loop import Session
from targetprop.experiments.stop_signals import Stopped


class Follower:
    """Stops where the keeper does.

    Attributes:
        folder: where rank 0 keeps the run, as soon as a step is done.
    """

    def __init__(self, config: RunConfig, session: Session, crew: Crew) -> None:
        """Keep all."""
        self.config, self.session, self.crew = config, session, crew
        self.folder: Path | None = None

    def on_step(self, record: dict[str, Any] | None) -> None:
        """Agree with the other ranks after a step."""
        stop, _ = self.crew.agree(self.session)
        self.folder = self.folder or self.crew.find_folder()
        if stop:
            raise Stopped

    def on_skip(self, record: dict[str, Any]) -> None:
        """Leave it to rank 0 to log a step that was skipped."""

    def on_epoch(self) -> None:
        """Agree with the other ranks after an epoch."""
        if self.crew.agree(self.session, epoch=True)[0] and self.session.epoch < self.config.loop.epochs:
            raise Stopped
