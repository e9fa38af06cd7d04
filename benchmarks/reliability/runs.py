"""Tiny training runs in forked children, and what a run folder holds apart from times: shared by the parts."""

import gc
import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor

from targetprop.experiments import recorder
from targetprop.experiments.main import main
from targetprop.experiments.values import read_values
from targetprop.runs.atomic import write_atomic
from targetprop.runs.checkpoint import has_checkpoint, load_checkpoint
from targetprop.runs.read import read_metrics, read_summary
from targetprop.runs.status import read_status

_SMALL = "--device cpu --data.limit 64 --batch_size 16 --epochs 2 --log_every 1 --checkpoint_minutes 0"
_DENSE = "--network.widths 6 6"
RECIPES = {
    "krylov": f"{_DENSE} --method krylov {_SMALL}".split(),
    "least-squares": f"{_DENSE} --update.rule least-squares --optimizer.name adamw {_SMALL}".split(),
    "augmented": f"{_DENSE} --method dtp --data.crop 1 --data.flip true --schedule.name cosine {_SMALL}".split(),
    "short": f"{_DENSE} --method krylov {_SMALL} --data.limit 32".split(),
    "backprop": f"{_DENSE} --method backprop --optimizer.name sgd {_SMALL}".split(),
}
_TIMES = ("seconds_per_step", "pid", "host", "updated", "seconds")


@contextmanager
def quick_curves(fast: bool) -> Iterator[None]:
    """Let runs write what their curves show instead of drawing it, which takes three times as long as such a run."""
    plain = recorder.draw_curves, recorder.Pace
    recorder.draw_curves = _write_curves if fast else plain[0]
    recorder.Pace = lambda: lambda action: None  # curves at the end only, so that equal runs write equally often
    try:
        yield
    finally:
        recorder.draw_curves, recorder.Pace = plain


def _write_curves(run: Path) -> Path:
    shown = [read_status(run).word, _timeless(read_metrics(run))]
    write_atomic(run / "curves.png", json.dumps(shown).encode())
    return run / "curves.png"


def start(arguments: Sequence[str], log: Path, prepare: Callable[[], None] | None = None) -> int:
    """Run ``targetprop ARGUMENTS`` in a child, from here on at its own pace.

    Args:
        arguments: the command line.
        log: takes its output.
        prepare: is called in the child first.

    Returns:
        The child's process id.
    """
    sys.stdout.flush()
    gc.freeze()  # the child need not go through what is here
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        if prepare is not None:
            prepare()
        status = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def finish(child: int) -> int:
    """Wait for a child; returns its exit status, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(child: int) -> None:
    """End a child as the system does when memory is short or the power button is held."""
    os.kill(child, signal.SIGKILL)


def train(run: Path, recipe: str) -> list[str]:
    """Write the command line that begins a run, or goes on with it if it has begun."""
    if (run / "config.yaml").exists():
        return ["train", "--resume", str(run)]
    return ["train", *RECIPES[recipe], "--out", str(run)]


def whole_run(folder: Path, recipe: str) -> dict[str, Any]:
    """Train without disturbance, in this process, so that children find everything imported; returns the content."""
    run = folder / f"whole-{recipe}"
    if not run.exists():
        with (folder / "whole.log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
            status = main(train(run, recipe))
        assert status == 0, (folder / "whole.log").read_text()
    return content(run)


def content(run: Path) -> dict[str, Any]:
    """Collect all that a run folder holds, but for times, so that two can be compared bit for bit."""
    tensors = load((run / "checkpoint.safetensors").read_bytes())
    state = {key: value for key, value in load_checkpoint(run).items() if key != "metrics"}
    return {
        "files": sorted(path.name for path in run.iterdir()),
        "tensors": {name: (str(x.dtype), list(x.shape), x.numpy().tobytes()) for name, x in tensors.items()},
        "values": _timeless(state),
        "metrics": _timeless(read_metrics(run)),
        "summary": _timeless(read_summary(run)),
        "config": read_values((run / "config.yaml").read_text()),
        "curves": hashlib.sha256((run / "curves.png").read_bytes()).hexdigest(),
    }


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Name the parts in which two runs differ."""
    return [name for name in first if first[name] != second[name]]


def check_whole(run: Path) -> int | None:
    """Read every file of a run that was cut off, which raises if one is half-written.

    Args:
        run: the run's folder.

    Returns:
        Logged steps that its checkpoint does not have; None where there is no checkpoint yet.
    """
    if (run / "config.yaml").exists():
        read_values((run / "config.yaml").read_text())
    if (run / "summary.json").exists():
        read_summary(run)
    if not has_checkpoint(run):
        return None
    done = load_checkpoint(run)["counters"]["step"]
    return max([record["step"] for record in read_metrics(run)], default=0) - done


def fresh(run: Path, source: Path | None = None) -> Path:
    """Make way for a run, or copy another into its place; returns its folder."""
    shutil.rmtree(run, ignore_errors=True)
    return run if source is None else shutil.copytree(source, run)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in _TIMES}
    if isinstance(value, list | tuple):
        return [_timeless(item) for item in value]
    return str(value) if isinstance(value, Tensor) else value  # its bits are compared with the other tensors
