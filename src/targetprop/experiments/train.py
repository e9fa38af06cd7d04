"""``targetprop train``: from the command line to a run folder, for a new run or one that goes on."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from targetprop.experiments.build import build, find_device
from targetprop.experiments.config import RunConfig
from targetprop.experiments.deterministic import COST, deterministic
from targetprop.experiments.distributed import Processes, connect, on_every_rank
from targetprop.experiments.epochs import train_epochs
from targetprop.experiments.loggers import check_logger
from targetprop.experiments.parser import build_config, format_help, read_options
from targetprop.experiments.progress import say
from targetprop.experiments.recorder import RunRecorder
from targetprop.experiments.resume import read_stored_run
from targetprop.experiments.values import Options
from targetprop.runs.folder import RunFolder, create_run_folder, writing
from targetprop.runs.lock import hold


def train(argv: list[str]) -> int:
    """Run the command."""
    return on_every_rank(lambda processes: _train(argv, processes))


def _train(argv: list[str], processes: Processes) -> int:
    arguments = read_options(argv)
    resume = arguments.values.pop("resume", None)
    if resume is not None and "help" not in arguments.flags:
        return _resume(Path(resume).expanduser(), arguments, processes)
    if "help" in arguments.flags:
        sys.stdout.write(format_help(arguments.values))
        return 0
    config = build_config(arguments.values)
    for note in arguments.notes:
        say(f"note: {note}")
    if "print_config" in arguments.flags:
        sys.stdout.write(config.to_yaml())
        return 0
    if config.loop.deterministic:
        say(f"note: {COST}")
    with _together(config, processes) as processes:
        state, data = build(config, processes)
        with _new_folder(config, processes) as folder:
            return train_epochs(RunRecorder(config, state, data, folder), data)


def _resume(run: Path, arguments: Options, processes: Processes) -> int:
    stored, first = read_stored_run(run, arguments), processes.rank == 0
    with hold(run) if first else nullcontext():
        saved = stored.load()
        with _together(stored.config, processes) as processes:
            state, data = build(stored.config, processes, saved)
            folder = stored.reopen(saved) if first else None
            return train_epochs(RunRecorder(stored.config, state, data, folder, state.step if saved else None), data)


@contextmanager
def _together(config: RunConfig, processes: Processes) -> Iterator[Processes]:
    """Connect the processes, and compute as the configuration asks for."""
    check_logger(config.loop.logger)
    device = find_device(config.loop.device, processes)
    with deterministic(config.loop.deterministic), connect(processes, device) as connected:
        yield connected


@contextmanager
def _new_folder(config: RunConfig, processes: Processes) -> Iterator[RunFolder | None]:
    """Make the run's folder, which is rank 0's alone, and hold its lock."""
    if processes.rank:
        yield None
        return
    folder = create_run_folder(config.out, f"{config.method.name}-{config.data.name}-s{config.loop.seed}")
    with hold(folder.path):
        with writing(folder.path):
            folder.write_config(config.to_yaml())
        yield folder
