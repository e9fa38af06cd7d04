"""Trains the epochs of a run, and records how it ends: finished, interrupted or failed."""

from contextlib import suppress

from targetprop.experiments.data import Dataset
from targetprop.experiments.errors import CommandError
from targetprop.experiments.loop import run_epoch
from targetprop.experiments.memory import OutOfMemory, fitting
from targetprop.experiments.networks import OwnModel
from targetprop.experiments.progress import say
from targetprop.experiments.recorder import RunRecorder
from targetprop.experiments.signals import Stopped

_TOLD = (FloatingPointError, OutOfMemory, OSError)
_OF_MODELS = (ValueError, TypeError)  # a step or a checkpoint refuses a user's own model


def train_epochs(recorder: RunRecorder, data: Dataset) -> int:
    """Train to the end, and record the end, whichever it is; returns the exit status."""
    told = _TOLD + (_OF_MODELS if isinstance(recorder.config.network, OwnModel) else ())
    with recorder.signals:
        try:
            status = _run_or_stop(recorder, data)
        except BrokenPipeError:
            recorder.write("interrupted", "nobody reads its output any more")
            raise
        except KeyboardInterrupt as error:  # no parting from the other ranks, which may wait for something else
            raise CommandError(recorder.stop("stopped at once by a second Ctrl-C"), 130) from error
        except told as error:
            raise recorder.fail(error) from error
        except BaseException as error:
            with suppress(OSError):
                recorder.write("failed", f"{type(error).__name__}: {error}")
            raise
        if status == 0:
            recorder.show()
        return status


def _run_or_stop(recorder: RunRecorder, data: Dataset) -> int:
    try:
        recorder.write("running")
        _run_epochs(recorder, data)
        recorder.draw()  # a run that is killed here is not finished, and draws when it goes on
        recorder.finish()
    except Stopped:
        say(recorder.stop(recorder.signals.reason))
        return recorder.signals.exit_status
    return 0


def _run_epochs(recorder: RunRecorder, data: Dataset) -> None:
    state, config = recorder.state, recorder.config
    step = f"a step of network {config.network.name!r} with --batch_size {config.loop.batch_size}"
    with recorder.progress:
        while state.epoch < config.loop.epochs:
            with fitting(step, "make one of them smaller"):
                record = run_epoch(state, data, config.loop.batch_size, config.loop.log_every, recorder)
            state.check_alike()
            recorder.on_epoch(record)
