"""``targetprop train``: from the command line to a run folder, for a new run or one that goes on."""

import errno
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from math import ceil
from pathlib import Path
from typing import Any, NoReturn

import torch

from targetprop.experiments.checkpoint import has_checkpoint, load_checkpoint, settle_checkpoint
from targetprop.experiments.config import RunConfig
from targetprop.experiments.crew import Crew, Lost
from targetprop.experiments.data import Dataset
from targetprop.experiments.deterministic import COST, deterministic
from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.experiments.follower import Follower
from targetprop.experiments.keeper import Keeper
from targetprop.experiments.loop import Session, run_epoch
from targetprop.experiments.meeting import join
from targetprop.experiments.memory import OutOfMemory, fitting
from targetprop.experiments.parser import build_config, format_help, read_options
from targetprop.experiments.run_folder import RunFolder, create_run_folder, end_for_another
from targetprop.experiments.run_lock import hold
from targetprop.experiments.screen import Screen, say, show_summary
from targetprop.experiments.seat import Seat, find_seat
from targetprop.experiments.session import build_session, check_in_step, find_device, load_data
from targetprop.experiments.stop_signals import Stopped
from targetprop.experiments.stored_run import open_session, parse_stored, read_stored_values
from targetprop.experiments.values import Options
from targetprop.report.curves import draw_curves
from targetprop.report.read_run import read_summary
from targetprop.report.run_status import RunStatus, read_status

_BESIDE_RESUME = {"epochs", "device"}
_FULL = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG")}


def train(argv: list[str]) -> int:
    """Run the command."""
    seat = find_seat()
    try:
        return _train(argv, seat)
    except Lost as lost:
        if lost.speaks:
            raise CommandError(f"the run did not begin: {lost.reason}", lost.code) from lost
        return lost.code
    except CommandError as error:
        if seat.rank == 0:
            raise
        if error.status == FAILURE:
            raise CommandError(f"rank {seat.rank}: {error}", FAILURE) from error
        return error.status


def _train(argv: list[str], seat: Seat) -> int:
    arguments, say_once = read_options(argv), say if seat.rank == 0 else str
    resume = arguments.values.pop("resume", None)
    if resume is not None and "help" not in arguments.flags:
        return _resume(Path(resume).expanduser(), arguments, seat)
    if "help" in arguments.flags:
        _show(format_help(arguments.values), seat)
        return 0
    config = build_config(arguments.values)
    for note in arguments.notes:
        say_once(f"note: {note}")
    if "print_config" in arguments.flags:
        _show(config.to_yaml(), seat)
        return 0
    if config.loop.deterministic:
        say_once(f"note: {COST}")
    with deterministic(config.loop.deterministic), join(seat) as meeting:
        crew = meeting.crew
        device = _choose_device(config, seat)
        with fitting("the data"):
            data = load_data(config, device)
        with fitting(f"network {config.network.name!r}"):
            session = build_session(config, data, meeting.connect(device))
        if not crew.keeps:
            return _follow(config, session, data, crew)
        folder = create_run_folder(config.out, f"{config.method.name}-{config.data.name}-s{config.loop.seed}")
        with hold(folder.path):
            with _writing(folder.path):
                folder.write_config(config.to_yaml())
            return _run(config, session, data, folder, crew)


def _show(text: str, seat: Seat) -> None:
    sys.stdout.write(text if seat.rank == 0 else "")


def _choose_device(config: RunConfig, seat: Seat) -> torch.device:
    return find_device(config.loop.device, seat.local if seat.size > 1 else None)


def _resume(run: Path, arguments: Options, seat: Seat) -> int:
    refused = [f"--{name}" for name in arguments.values if name not in _BESIDE_RESUME]
    refused += [f"--{flag}" for flag in arguments.flags]
    if refused:
        raise CommandError(f"--resume keeps the run's own configuration; leave {', '.join(refused)} out")
    stored, status = read_stored_values(run, "--resume"), read_status(run)
    with hold(run) if seat.rank == 0 else nullcontext():
        try:
            return _go_on(run, stored, arguments, status, seat)
        except Lost as lost:
            if lost.speaks and lost.status == "failed":
                end_for_another(run, lost.reason, instead=("running", "interrupted", "failed"))
            raise


def _go_on(run: Path, stored: dict[str, str], arguments: Options, status: RunStatus, seat: Seat) -> int:
    kept = {name: text for name, text in arguments.values.items() if name != "device"}
    before, after = parse_stored(run, stored), build_config({**stored, **kept})
    config = build_config({**stored, **arguments.values})
    with deterministic(config.loop.deterministic), join(seat) as meeting:
        crew = meeting.crew
        with _writing(run):
            state = _load_state(run, status.saved, seat)
        _check_epochs(run, state, before.loop.epochs, after.loop.epochs, status.word)
        device = _choose_device(config, seat)
        session, data = open_session(config, state, device, meeting.connect)
        if not crew.keeps:
            return _follow(config, session, data, crew)
        folder = RunFolder(run)
        with _writing(run):
            complete = folder.cut_back(state["metrics"]) if "metrics" in state else folder.forget_after(session.epoch)
            if after != before:
                folder.write_config(after.to_yaml())
        if status.word != "finished":
            say(f"{status.sentence}; it goes on after step {session.step}")
        if not complete:
            say(f"note: {run} has lost its metrics, so its curves begin after step {session.step}")
        return _run(config, session, data, folder, crew, saved=session.step if state else None)


@contextmanager
def _writing(run: Path) -> Iterator[None]:
    """Explain what keeps a run from beginning or going on."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"{run} cannot be written to ({error}); put that right and try again", FAILURE) from error


def _load_state(run: Path, saved: int | None, seat: Seat) -> dict[str, Any]:
    """Load the checkpoint; a run that has not got so far begins at its beginning."""
    if saved is None and not has_checkpoint(run):
        return {}
    if seat.rank == 0:
        settle_checkpoint(run)
    return load_checkpoint(run)


def _check_epochs(run: Path, state: dict[str, Any], before: int, after: int, status: str) -> None:
    done = state.get("counters", {}).get("epoch", 0)
    if after < before:
        raise CommandError(f"--epochs {after} is less than the {before} that {run} was begun with; give more")
    if after <= done and status == "finished":
        raise CommandError(f"{run} has run its {done} epochs; give a larger --epochs to go on")


def _follow(config: RunConfig, session: Session, data: Dataset, crew: Crew) -> int:
    """Train beside rank 0, which keeps the run and says what happens to it."""
    follower = Follower(config, session, crew)
    try:
        return crew.work(lambda: _follow_or_stop(follower, data))
    except Lost as lost:
        if not lost.speaks:
            return lost.code
        folder = follower.folder or crew.find_folder()
        if folder is not None:
            end_for_another(folder, lost.reason)
        raise CommandError(lost.reason, lost.code) from lost
    except (FloatingPointError, OSError) as error:
        raise CommandError(str(error), FAILURE) from error


def _follow_or_stop(follower: Follower, data: Dataset) -> int:
    session, loop = follower.session, follower.config.loop
    try:
        while session.epoch < loop.epochs:
            with _stepping(follower.config):
                run_epoch(session, data, loop.batch_size, loop.log_every, follower)
            check_in_step(session)
            follower.on_epoch()
    except Stopped:
        return follower.crew.signals.exit_status
    except KeyboardInterrupt:
        return 130
    return 0


def _run(
    config: RunConfig, session: Session, data: Dataset, folder: RunFolder, crew: Crew, saved: int | None = None
) -> int:
    with crew.listen():
        keeper = Keeper(config, session, data, folder, crew, saved)
        crew.last_words = keeper.write
        try:
            code = crew.work(lambda: _run_or_stop(keeper, data, crew))
        except Lost as lost:
            if lost.status == "failed":
                _fail(keeper, lost)
            return _stop(keeper, lost.reason, lost.code)
        except BrokenPipeError:
            keeper.write("interrupted", "nobody reads its output any more")
            raise
        except (FloatingPointError, OutOfMemory, OSError) as error:
            _fail(keeper, error)
        except BaseException as error:
            with suppress(OSError):
                keeper.write("failed", f"{type(error).__name__}: {error}")
            raise
        if code == 0:
            show_summary(read_summary(folder.path), folder.path)
        return code


def _run_or_stop(keeper: Keeper, data: Dataset, crew: Crew) -> int:
    try:
        keeper.write("running")
        crew.leave_folder(keeper.folder.path)
        _run_epochs(keeper, data)
        draw_curves(keeper.folder.path)  # a run that is killed here is not finished, and draws when it goes on
        keeper.write("finished")
    except Stopped:
        return _stop(keeper, crew.signals.reason, crew.signals.exit_status)
    except KeyboardInterrupt:
        return _stop(keeper, "stopped at once by a second Ctrl-C", 130)
    return 0


def _run_epochs(keeper: Keeper, data: Dataset) -> None:
    session, loop = keeper.session, keeper.config.loop
    with Screen(loop.epochs, ceil(len(data.train_x) / loop.batch_size), session.epoch, session.step) as screen:
        watcher = _Both(keeper, screen)
        while session.epoch < loop.epochs:
            with _stepping(keeper.config):
                record = run_epoch(session, data, loop.batch_size, loop.log_every, watcher)
            check_in_step(session)
            screen.on_epoch(record)
            keeper.on_epoch(record)


def _stepping(config: RunConfig) -> AbstractContextManager[None]:
    step = f"a step of network {config.network.name!r} with --batch_size {config.loop.batch_size}"
    return fitting(step, "make one of them smaller")


class _Both:
    """Passes what was measured to the screen and to the keeper, who may end the run there."""

    def __init__(self, keeper: Keeper, screen: Screen) -> None:
        self._keeper, self._screen = keeper, screen

    def on_step(self, record: dict[str, Any] | None) -> None:
        self._screen.on_step(record)
        self._keeper.on_step(record)

    def on_skip(self, record: dict[str, Any]) -> None:
        self._keeper.on_skip(record)


def _stop(keeper: Keeper, reason: str, status: int) -> int:
    keeper.write("interrupted", reason)
    if keeper.session.epoch:
        draw_curves(keeper.folder.path)
    say(f"{reason} after step {keeper.session.step}; {_way_on(keeper)}")
    return status


def _fail(keeper: Keeper, error: Exception) -> NoReturn:
    with suppress(OSError):
        keeper.write("failed", str(error))
        if keeper.session.epoch:
            draw_curves(keeper.folder.path)
    epoch = min(keeper.session.epoch + 1, keeper.config.loop.epochs)
    problem = f"the run in {keeper.folder.path} failed in epoch {epoch}: {error}"
    if isinstance(error, OSError):
        full = "free some space on its disk" if error.errno in _FULL else "put that right"
        raise CommandError(f"{problem}; {full}, then {_way_on(keeper)}", FAILURE) from error
    raise CommandError(problem, FAILURE) from error


def _way_on(keeper: Keeper) -> str:
    return f"targetprop train --resume {keeper.folder.path} goes on after step {keeper.saved or 0}"
