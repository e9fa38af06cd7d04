"""``targetprop train``: from the command line to a run folder, for a new run or one that goes on."""

import sys
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import Any

import torch

import targetprop
from targetprop.experiments.arguments import Arguments, merge, read_command_line, read_file
from targetprop.experiments.checkpoint import load_checkpoint, save_checkpoint
from targetprop.experiments.config import RunConfig
from targetprop.experiments.data import Dataset
from targetprop.experiments.deterministic import COST, deterministic
from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.experiments.loop import Session, run_epoch
from targetprop.experiments.parse import format_help, parse_config
from targetprop.experiments.run_folder import RunFolder, create_run_folder
from targetprop.experiments.screen import Screen, say, show_summary
from targetprop.experiments.session import build_session, load_data, session_state
from targetprop.experiments.stored_run import open_session, read_stored_values
from targetprop.report.curves import draw_curves

_BESIDE_RESUME = {"epochs", "device"}


def train(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: its arguments.

    Returns:
        Exit status: 0, or 130 after Ctrl-C.
    """
    arguments = read_command_line(argv)
    resume = arguments.values.pop("resume", None)
    if resume is not None and "help" not in arguments.flags:
        return _resume(Path(resume).expanduser(), arguments)
    file = arguments.values.pop("config", None)
    if file is not None:
        arguments = merge(read_file(file), arguments)
    if "help" in arguments.flags:
        sys.stdout.write(format_help(arguments))
        return 0
    config = parse_config(arguments)
    for note in arguments.notes:
        say(f"note: {note}")
    if "print_config" in arguments.flags:
        sys.stdout.write(config.to_yaml())
        return 0
    if config.loop.deterministic:
        say(f"note: {COST}")
    with deterministic(config.loop.deterministic):
        data = load_data(config)
        session = build_session(config, data)
        folder = create_run_folder(config.out, f"{config.method.name}-{config.data.name}-s{config.loop.seed}")
        folder.write_config(config.to_yaml())
        return _run(config, session, data, folder)


def _resume(run: Path, arguments: Arguments) -> int:
    refused = [f"--{name}" for name in arguments.values if name not in _BESIDE_RESUME]
    refused += [f"--{flag}" for flag in arguments.flags]
    if refused:
        raise CommandError(f"--resume keeps the run's own configuration; leave {', '.join(refused)} out")
    stored = read_stored_values(run, "--resume")
    kept = {name: text for name, text in arguments.values.items() if name != "device"}
    before, after = (parse_config(Arguments({**stored, **changes})) for changes in ({}, kept))
    config = parse_config(Arguments({**stored, **arguments.values}))
    state = load_checkpoint(run)
    _check_epochs(run, state, before.loop.epochs, after.loop.epochs)
    with deterministic(config.loop.deterministic):
        session, data = open_session(config, state)
        folder = RunFolder(run)
        folder.forget_after(session.epoch)
        if after != before:
            folder.write_config(after.to_yaml())
        return _run(config, session, data, folder)


def _check_epochs(run: Path, state: dict[str, Any], before: int, after: int) -> None:
    done = state.get("counters", {}).get("epoch", 0)
    if after < before:
        raise CommandError(f"--epochs {after} is less than the {before} that {run} was begun with; give more")
    if after <= done:
        raise CommandError(f"{run} has run its {done} epochs; give a larger --epochs to go on")


class _Watcher:
    """Passes what was measured to the run folder and to the screen."""

    def __init__(self, folder: RunFolder, screen: Screen) -> None:
        self._folder, self._screen = folder, screen

    def on_step(self, record: dict[str, Any] | None) -> None:
        if record is not None:
            self._folder.log(record)
        self._screen.on_step(record)

    def on_skip(self, record: dict[str, Any]) -> None:
        self._folder.log(record)


def _run(config: RunConfig, session: Session, data: Dataset, folder: RunFolder) -> int:
    folder.write_summary(_summary(config, session, data, "running"))
    try:
        _run_epochs(config, session, data, folder)
    except KeyboardInterrupt:
        _end(config, session, data, folder, "interrupted", "stopped by Ctrl-C")
        ending = f"targetprop train --resume {folder.path} goes on" if session.epoch else "there is nothing to resume"
        say(f"stopped by Ctrl-C after {session.epoch} epochs; {ending}")
        return 130
    except (FloatingPointError, torch.OutOfMemoryError, OSError) as error:
        with suppress(OSError):
            _end(config, session, data, folder, "failed", str(error))
        raise CommandError(f"the run in {folder.path} failed in epoch {session.epoch + 1}: {error}", FAILURE) from error
    except BaseException as error:
        _end(config, session, data, folder, "failed", f"{type(error).__name__}: {error}")
        raise
    show_summary(_end(config, session, data, folder, "finished"), folder.path)
    return 0


def _run_epochs(config: RunConfig, session: Session, data: Dataset, folder: RunFolder) -> None:
    loop = config.loop
    with Screen(loop.epochs, session.epoch, ceil(len(data.train_x) / loop.batch_size)) as screen:
        watcher = _Watcher(folder, screen)
        while session.epoch < loop.epochs:
            record = run_epoch(session, data, loop.batch_size, loop.log_every, watcher)
            folder.log(record)
            save_checkpoint(folder.path, session_state(session))
            folder.write_summary(_summary(config, session, data, "running"))
            screen.on_epoch(record)


def _end(
    config: RunConfig, session: Session, data: Dataset, folder: RunFolder, status: str, reason: str | None = None
) -> dict[str, Any]:
    summary = _summary(config, session, data, status, reason)
    folder.write_summary(summary)
    if session.epoch:
        draw_curves(folder.path)
    return summary


def _summary(
    config: RunConfig, session: Session, data: Dataset, status: str, reason: str | None = None
) -> dict[str, Any]:
    last = session.last
    return {
        "method": config.method.name,
        "data": config.data.name,
        "seed": config.loop.seed,
        "status": status,
        "reason": reason,
        "epochs": session.epoch,
        "epochs_planned": config.loop.epochs,
        "steps": last.get("step", 0),
        "skipped_steps": session.skipped.total,
        "train_loss": last.get("train_loss"),
        "train_accuracy": last.get("train_accuracy"),
        "test_loss": last.get("test_loss"),
        "test_accuracy": last.get("test_accuracy"),
        "best_test_accuracy": session.best if session.epoch else None,
        "seconds_per_step": last["seconds"] / last["step"] if last else None,
        "parameters": sum(p.numel() for p in session.model.parameters()),
        "device": str(data.train_x.device),
        "torch": torch.__version__,
        "targetprop": targetprop.__version__,
    }
