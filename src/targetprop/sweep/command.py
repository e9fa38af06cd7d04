"""``targetprop sweep``: trains the runs of a sweep, several at a time, and compares them."""

from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait

from targetprop.experiments.compare import find_runs, write_comparison
from targetprop.experiments.errors import FAILURE, CommandError, make_folder
from targetprop.experiments.progress import Steps, say
from targetprop.experiments.signals import StopSignals
from targetprop.runs.lock import hold
from targetprop.runs.status import is_held
from targetprop.sweep.process import RunProcess
from targetprop.sweep.request import Sweep, read_sweep
from targetprop.sweep.study import open_study
from targetprop.sweep.trials import NAME, Search, Source, list_confirmations, list_runs

_PAUSE = 0.25  # seconds between two looks at what the runs have recorded


def sweep(argv: list[str]) -> int:
    """Run the command."""
    wanted = read_sweep(argv)
    out = make_folder(str(wanted.out))
    if is_held(out):
        raise CommandError(f"another targetprop sweep works in {out}; wait for its end, or end it first", FAILURE)
    signals = StopSignals()
    with hold(out):
        with signals:
            done = _train_all(wanted, signals)
        if signals.received:
            say(f"{signals.reason} after {done}; the same command goes on")
            return signals.exit_status
        write_comparison(find_runs([out]), out)
    return 0


def _train_all(wanted: Sweep, signals: StopSignals) -> str:
    """Train what is left to train; returns how much is done."""
    if wanted.trials is None:
        open_study(wanted.out, NAME, wanted.about, "a sweep")
        runs = list_runs(wanted)
        train_source(runs, wanted.jobs, signals)
        return f"{runs.done} of {runs.total} runs"
    search = Search(wanted)
    train_source(search, wanted.jobs, signals)
    best = search.best
    if best is not None and not signals.received:
        train_source(list_confirmations(wanted, best), wanted.jobs, signals)
    return f"{search.done} of {search.total} trials"


def train_source(
    source: Source, jobs: int, signals: StopSignals, start: Callable[..., RunProcess] = RunProcess
) -> None:
    """Train what a source plans, so many runs at a time, until there is no more or a signal asks for a stop."""
    running: list[RunProcess] = []
    try:
        with Steps(f"{jobs} at a time" if jobs > 1 else "training", "runs done") as progress:
            while not signals.received:
                while len(running) < jobs and (plan := source.next()) is not None:
                    running.append(start(plan))
                if not running:
                    return
                wait([run.sentinel for run in running], _PAUSE)
                for run in list(running):
                    source.watch(run)
                    if run.has_ended and not signals.received:
                        running.remove(run)
                        say(source.finish(run))
                progress(source.done, source.total)
    finally:
        _stop(running)


def _stop(running: list[RunProcess]) -> None:
    """Stop runs after their step; a second Ctrl-C stops them at once."""
    try:
        for run in running:
            run.stop()
        for run in running:
            with suppress(CommandError):
                run.finish()
    except KeyboardInterrupt:
        for run in running:
            run.kill()
        raise
