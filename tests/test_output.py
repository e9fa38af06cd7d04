"""Commands end quietly where nobody reads what they write, and say so where it cannot be written."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import forked_command
from forked_command import GONE
from targetprop.experiments.main import main
from targetprop.runs.status import read_status

STREAMS = ("stdout", "stderr")
SMALL = "--network.widths 6 --data.limit 64 --batch_size 32 --device cpu --method backprop".split()
MODEL = "from torch import nn\nnet = nn.Sequential(nn.Linear(3, 2))\n"
RUNS: dict[str, dict[str, Any]] = {
    "methods": {"words": "methods", "stdout": GONE},
    "methods, unbuffered": {"words": "methods", "stdout": GONE, "unbuffered": True},
    "configuration": {"words": "train --print_config", "stdout": GONE},
    "check": {"words": "check model.py:net --input 3", "stdout": GONE, "unbuffered": True},
    "both streams": {"words": "trian", "stdout": GONE, "stderr": GONE},
    "finished": {"words": "train --epochs 1 --out finished", "stdout": GONE, "unbuffered": True},
    "left": {"words": "train --epochs 2 --out left", "stdout": GONE, "stderr": GONE},
}
if os.path.exists("/dev/full"):
    RUNS["full disk"] = {"words": "methods", "stdout": "/dev/full"}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The folder in which all commands ran, and by name how each ended and what it said."""
    folder, runs = tmp_path_factory.mktemp("output"), []
    (folder / "model.py").write_text(MODEL)
    for name, run in RUNS.items():
        words = run["words"].split() + (SMALL if "--out" in run["words"] else [])
        plain = {"stdout": f"{name}.out", "stderr": f"{name}.err", "unbuffered": False}
        runs.append(plain | run | {"words": words})
    codes, found = forked_command.play(folder, ["train", *SMALL, "--epochs", "1", "--out", "first"], *runs), {}
    for name, run, code in zip(RUNS, runs, codes, strict=True):
        said = {key: None if run[key] in (GONE, "/dev/full") else (folder / run[key]).read_text() for key in STREAMS}
        found[name] = SimpleNamespace(code=code, **said)
    return folder, found


@pytest.mark.parametrize("name", ["methods", "methods, unbuffered", "configuration", "check"])
def test_a_reader_who_has_read_enough_ends_the_command_quietly(ended, name):
    assert (ended[1][name].code, ended[1][name].stderr) == (141, "")


def test_so_does_a_reader_of_both_streams(ended):
    assert ended[1]["both streams"].code == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")
def test_a_full_disk_is_named(ended):
    done = ended[1]["full disk"]
    assert done.code == 1 and "the output cannot be written" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="a shell closes the stream")
def test_closed_streams_are_no_error(tmp_path):
    command = f"exec {sys.executable} -m targetprop methods >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, check=False).returncode == 0


def test_a_finished_run_stays_finished_and_one_that_nobody_watches_can_go_on(ended, capsys):
    folder, found = ended
    assert found["finished"].code == 141 and "Error" not in found["finished"].stderr
    assert read_status(folder / "finished").word == "finished"
    assert found["left"].code == 141
    assert json.loads((folder / "left" / "summary.json").read_text())["status"] == "interrupted"
    assert main(["train", "--resume", str(folder / "left")]) == 0
    assert "2 (" in capsys.readouterr().out and read_status(folder / "left").word == "finished"
