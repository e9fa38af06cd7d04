"""Runs ``python -m targetprop`` several times in forks of one process, which saves the time of starting Python.

As a script it takes a file with a list of runs, each ``{"words", "stdout", "stderr", "unbuffered"}``, and writes how
each ended in their place. A stream is a file's name, or "gone": a pipe that nobody reads any more. The first run is
made by the process itself, so that the others find everything imported. Each fork ends as Python does, with the streams
flushed.
"""

import gc
import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

from targetprop.experiments import recorder
from targetprop.experiments.main import main

GONE = "gone"


def play(folder: Path, first: list[str], *runs: dict[str, Any]) -> list[int]:
    """Run commands one after the other in a folder; returns the exit statuses of all but the first."""
    path = folder / "runs.json"
    path.write_text(json.dumps([first, *runs]))
    one = {**os.environ, "OMP_NUM_THREADS": "1"}  # a fork of a process whose OpenMP threads have run hangs
    subprocess.run([sys.executable, __file__, path], cwd=folder, check=True, timeout=300, env=one)
    return json.loads(path.read_text())


def _open(name: str) -> int:
    if name != GONE:
        return os.open(name, os.O_WRONLY | os.O_CREAT)
    read, write = os.pipe()
    os.close(read)
    return write


def _become(words: list[str], stdout: str, stderr: str, *, unbuffered: bool) -> None:
    """Make this process look as if it had been started with these words and streams."""
    for number, name in ((1, stdout), (2, stderr)):
        os.dup2(_open(name), number)
    mode = {"write_through": True} if unbuffered else {}
    raw = [io.FileIO(number, "w", closefd=False) for number in (1, 2)]
    out = raw[0] if unbuffered else io.BufferedWriter(raw[0])
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(out, encoding="utf-8", **mode)  # type: ignore[misc]
    error = io.TextIOWrapper(io.BufferedWriter(raw[1]), encoding="utf-8", line_buffering=True)
    sys.stderr = sys.__stderr__ = error  # type: ignore[misc]
    sys.argv = ["targetprop", *words]


def _run_all(path: Path) -> bool:
    """Fork a process for each run; returns whether this process is one of them."""
    (first, *runs), codes = json.loads(path.read_text()), []
    assert main(first) == 0
    gc.collect()
    gc.freeze()  # forks need not go through what is imported here when they end
    for run in runs:
        child = os.fork()
        if not child:
            _become(**run)
            return True
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    path.write_text(json.dumps(codes))
    return False


if __name__ == "__main__":
    recorder.draw_curves = lambda run: run
    if _run_all(Path(sys.argv[1])):
        runpy.run_module("targetprop", run_name="__main__")
