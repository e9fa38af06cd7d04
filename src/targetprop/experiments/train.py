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
from targetprop.experiments.crew import Crew, Place, Stopped, find_place, join
from targetprop.experiments.data import Dataset
from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.experiments.loop import Session, run_epoch
from targetprop.experiments.parse import format_help, parse_config
from targetprop.experiments.run_folder import RunFolder, create_run_folder, end_for_another
from targetprop.experiments.screen import Screen, say, show_summary
from targetprop.experiments.session import build_session, check_in_step, find_device, session_state
from targetprop.experiments.stored_run import open_session, read_stored_values
from targetprop.report.curves import draw_curves

_BESIDE_RESUME = {"epochs", "device"}


def train(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: its arguments.

    Returns:
        Exit status: 0, or 130 after Ctrl-C and 143 after SIGTERM.

    Raises:
        CommandError: something the user can put right; ranks that all say the same leave it to rank 0.
    """
    place = find_place()
    try:
        return _train(argv, place)
    except CommandError as error:
        if place.rank == 0:
            raise
        if error.status == FAILURE:
            raise CommandError(f"rank {place.rank}: {error}", FAILURE) from error
        return error.status


def _train(argv: list[str], place: Place) -> int:
    arguments = read_command_line(argv)
    resume = arguments.values.pop("resume", None)
    if resume is not None and "help" not in arguments.flags:
        return _resume(Path(resume).expanduser(), arguments, place)
    file = arguments.values.pop("config", None)
    if file is not None:
        arguments = merge(read_file(file), arguments)
    if "help" in arguments.flags:
        _show(format_help(arguments), place)
        return 0
    config = parse_config(arguments)
    for note in arguments.notes if place.rank == 0 else ():
        say(f"note: {note}")
    if "print_config" in arguments.flags:
        _show(config.to_yaml(), place)
        return 0
    device = _choose_device(config, place)
    data = config.data.load().to(device)
    with join(place, device) as crew:
        session = build_session(config, data, crew.group)
        if not crew.keeps:
            return _follow(config, session, data, crew)
        folder = create_run_folder(config.out, f"{config.method.name}-{config.data.name}-s{config.loop.seed}")
        folder.write_config(config.to_yaml())
        return _run(config, session, data, folder, crew)


def _show(text: str, place: Place) -> None:
    sys.stdout.write(text if place.rank == 0 else "")


def _choose_device(config: RunConfig, place: Place) -> torch.device:
    return find_device(config.loop.device, place.local if place.size > 1 else None)


def _resume(run: Path, arguments: Arguments, place: Place) -> int:
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
    device = _choose_device(config, place)
    with join(place, device) as crew:
        session, data = open_session(config, state, device, crew.group)
        if not crew.keeps:
            return _follow(config, session, data, crew)
        folder = RunFolder(run)
        folder.forget_after(session.epoch)
        if after != before:
            folder.write_config(after.to_yaml())
        return _run(config, session, data, folder, crew)


def _check_epochs(run: Path, state: dict[str, Any], before: int, after: int) -> None:
    done = state.get("counters", {}).get("epoch", 0)
    if after < before:
        raise CommandError(f"--epochs {after} is less than the {before} that {run} was begun with; give more")
    if after <= done:
        raise CommandError(f"{run} has run its {done} epochs; give a larger --epochs to go on")


class _Watcher:
    """Passes what was measured to the run folder and to the screen."""

    def __init__(self, folder: RunFolder, screen: Screen, crew: Crew) -> None:
        self._folder, self._screen, self._crew = folder, screen, crew

    def on_step(self, record: dict[str, Any] | None) -> None:
        if record is not None:
            self._folder.log(record)
        self._screen.on_step(record)
        self._crew.check()


class _Follower:
    """Leaves what was measured to rank 0."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew

    def on_step(self, record: dict[str, Any] | None) -> None:
        self._crew.check()


def _follow(config: RunConfig, session: Session, data: Dataset, crew: Crew) -> int:
    """Train beside rank 0, which keeps the run and says what happens to it."""

    def train_epochs() -> None:
        while session.epoch < config.loop.epochs:
            run_epoch(session, data, config.loop.batch_size, config.loop.log_every, _Follower(crew))
            check_in_step(session)

    folder = crew.find_folder()
    try:
        crew.work(train_epochs, lambda status, reason: None)
    except Stopped as stop:
        if crew.bereft and folder is not None:
            end_for_another(folder, stop.reason)
        return stop.code
    except (FloatingPointError, torch.OutOfMemoryError, OSError) as error:
        raise CommandError(str(error), FAILURE) from error
    return 0


def _run(config: RunConfig, session: Session, data: Dataset, folder: RunFolder, crew: Crew) -> int:
    folder.write_summary(_summary(config, session, data, "running"))
    crew.leave_folder(folder.path)

    def run() -> None:
        _run_epochs(config, session, data, folder, crew)
        show_summary(_end(config, session, data, folder, "finished"), folder.path)

    try:
        crew.work(
            run,
            lambda status, reason: folder.write_summary(_summary(config, session, data, status, reason)),
        )
    except Stopped as stop:
        _end(config, session, data, folder, stop.status, stop.reason)
        if stop.status == "failed":
            problem = f"the run in {folder.path} failed in epoch {session.epoch + 1}: {stop.reason}"
            raise CommandError(problem, FAILURE) from stop
        ending = f"targetprop train --resume {folder.path} goes on" if session.epoch else "there is nothing to resume"
        say(f"{stop.reason} after {session.epoch} epochs; {ending}")
        return stop.code
    except (FloatingPointError, torch.OutOfMemoryError, OSError) as error:
        with suppress(OSError):
            _end(config, session, data, folder, "failed", str(error))
        raise CommandError(f"the run in {folder.path} failed in epoch {session.epoch + 1}: {error}", FAILURE) from error
    except BaseException as error:
        _end(config, session, data, folder, "failed", f"{type(error).__name__}: {error}")
        raise
    return 0


def _run_epochs(config: RunConfig, session: Session, data: Dataset, folder: RunFolder, crew: Crew) -> None:
    loop = config.loop
    with Screen(loop.epochs, session.epoch, ceil(len(data.train_x) / loop.batch_size)) as screen:
        watcher = _Watcher(folder, screen, crew)
        while session.epoch < loop.epochs:
            record = run_epoch(session, data, loop.batch_size, loop.log_every, watcher)
            check_in_step(session)
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
        "train_loss": last.get("train_loss"),
        "train_accuracy": last.get("train_accuracy"),
        "test_loss": last.get("test_loss"),
        "test_accuracy": last.get("test_accuracy"),
        "best_test_accuracy": session.best if session.epoch else None,
        "seconds_per_step": last["seconds"] / last["step"] if last else None,
        "parameters": sum(p.numel() for p in session.model.parameters()),
        "device": str(data.train_x.device),
        "ranks": session.ranks.size,
        "torch": torch.__version__,
        "targetprop": targetprop.__version__,
    }
