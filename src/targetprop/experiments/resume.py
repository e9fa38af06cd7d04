"""Opens a run folder again: its configuration, its checkpoint, and what may stand beside ``--resume``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targetprop.experiments.config import RunConfig
from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.experiments.parser import build_config
from targetprop.experiments.progress import say
from targetprop.experiments.values import Options, read_file
from targetprop.runs.checkpoint import has_checkpoint, load_checkpoint
from targetprop.runs.folder import CONFIG, RunFolder, writing
from targetprop.runs.status import RunStatus, read_status

_KEPT = ("epochs", "logger")  # written into the run's file
_BESIDE_RESUME = {*_KEPT, "device"}


@dataclass(frozen=True)
class StoredRun:
    """A run that is to go on."""

    path: Path
    config: RunConfig  # with the epochs and the device asked for now
    before: RunConfig  # as its file has it
    after: RunConfig  # as its file shall have it
    status: RunStatus

    def load(self) -> dict[str, Any] | None:
        """Load the checkpoint; None for a run that has not got so far, and begins at its beginning."""
        saved = load_checkpoint(self.path) if self.status.saved is not None or has_checkpoint(self.path) else None
        done, before, after = (
            saved["counters"]["epoch"] if saved else 0,
            self.before.loop.epochs,
            self.after.loop.epochs,
        )
        if after < before:
            raise CommandError(f"--epochs {after} is less than the {before} that {self.path} was begun with; give more")
        if after <= done and self.status.word == "finished":
            raise CommandError(f"{self.path} has run its {done} epochs; give a larger --epochs to go on")
        return saved

    def reopen(self, saved: dict[str, Any] | None) -> RunFolder:
        """Bring the folder back to its checkpoint."""
        folder = RunFolder(self.path)
        with writing(self.path):
            complete = folder.cut_back(saved["metrics"] if saved else None)
            if self.after != self.before:
                folder.write_config(self.after.to_yaml())
        step = saved["counters"]["step"] if saved else 0
        if self.status.word != "finished":
            say(f"{self.status.sentence}; it goes on after step {step}")
        if not complete:
            say(f"note: {self.path} has lost its metrics, so its curves begin after step {step}")
        return folder


def read_stored_run(run: Path, arguments: Options) -> StoredRun:
    """Read the configuration of a run that is to go on, and change what may change."""
    refused = [f"--{name}" for name in arguments.values if name not in _BESIDE_RESUME]
    refused += [f"--{flag}" for flag in arguments.flags]
    if refused:
        raise CommandError(f"--resume keeps the run's own configuration; leave {', '.join(refused)} out")
    stored, status = read_stored_values(run, "--resume"), read_status(run)
    before = after = config = parse_stored(run, stored)
    kept = {name: arguments.values[name] for name in _KEPT if name in arguments.values}
    if kept:
        after = config = build_config({**stored, **kept})
    if "device" in arguments.values:
        config = build_config({**stored, **arguments.values})
    return StoredRun(run, config, before, after, status)


def read_stored_values(run: Path, command: str) -> dict[str, str]:
    """Read the configuration of a run."""
    if not (run / CONFIG).is_file():
        raise CommandError(f"{command} {run} is not a run folder, it has no {CONFIG}; give the folder of a run")
    return read_file(str(run / CONFIG))


def parse_stored(run: Path, stored: dict[str, str]) -> RunConfig:
    """Check the configuration of a run."""
    try:
        return build_config(stored)
    except CommandError as error:
        way_out = "put back the file that the run began with, or use the release that wrote it"
        raise CommandError(f"{run / CONFIG} cannot be used ({error}); {way_out}", FAILURE) from error
