"""Runs functions in new processes: forks of one that has imported what most need, which saves the time for that.

That one, the fork server of `multiprocessing`, is started by the first function.
"""

import gc
import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["ranks_worker", "sklearn.datasets", "targetprop.experiments.main", "targetprop.experiments.train", "torch._dynamo"]
)
_TIMEOUT = 300  # seconds


def run(function: Callable[..., Any], *arguments: Any) -> tuple[int | None, str]:
    """Call a function of a module that can be imported; returns the exit status and all that was written."""
    # With more OpenMP threads a fork of the process hangs.
    place = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.touch()
        process = _SERVER.Process(target=_call, args=(log, function, arguments))
        with patch.dict(os.environ, place):
            process.start()
        process.join(_TIMEOUT)
        if process.is_alive():
            process.kill()
            process.join()
        return process.exitcode, log.read_text()


def run_script(name: str, folder: Path, *words: object) -> tuple[int | None, str]:
    """Do what ``python -m NAME WORDS`` does in a folder; see `run`."""
    return run(_be_script, name, folder, list(map(str, words)))


def _call(log: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    gc.freeze()  # what is imported need not be gone through by this process and its forks
    function(*arguments)


def _be_script(name: str, folder: Path, words: list[str]) -> None:
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.argv = [name, *words]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
