"""Commands end quietly where nobody reads what they write, and say so where it cannot be written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from targetprop.runs.status import read_status

SMALL = "--network.widths 6 --data.limit 64 --batch_size 32 --device cpu --method backprop".split()
MODEL = "from torch import nn\nnet = nn.Sequential(nn.Linear(3, 2))\n"


def closed_pipe() -> int:
    """Make the writing end of a pipe whose reader has gone already."""
    read, write = os.pipe()
    os.close(read)
    return write


def ended(folder: Path, words: list[str], *, unbuffered: bool = False, **streams) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1" if unbuffered else "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "targetprop", *words]
    return subprocess.run(command, cwd=folder, env=environment, text=True, check=False, **streams)


@pytest.mark.parametrize(
    ("command", "unbuffered"),
    [("methods", False), ("methods", True), ("train --print_config", False), ("check model.py:net --input 3", True)],
)
def test_a_reader_who_has_read_enough_ends_the_command_quietly(tmp_path, command, unbuffered):
    (tmp_path / "model.py").write_text(MODEL)
    pipe = closed_pipe()
    done = ended(tmp_path, command.split(), unbuffered=unbuffered, stdout=pipe, stderr=subprocess.PIPE)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (141, "")


def test_so_does_a_reader_of_both_streams(tmp_path):
    pipe = closed_pipe()
    done = ended(tmp_path, ["trian"], stdout=pipe, stderr=pipe)
    os.close(pipe)
    assert done.returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")
def test_a_full_disk_is_named(tmp_path):
    with open("/dev/full", "w") as full:
        done = ended(tmp_path, ["methods"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and "the output cannot be written" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="a shell closes the stream")
def test_closed_streams_are_no_error(tmp_path):
    command = f"exec {sys.executable} -m targetprop methods >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, check=False).returncode == 0


def test_a_finished_run_stays_finished_and_one_that_nobody_watches_can_go_on(tmp_path):
    pipe = closed_pipe()
    words = ["train", *SMALL, "--epochs", "1", "--out", "done"]
    done = ended(tmp_path, words, unbuffered=True, stdout=pipe, stderr=subprocess.PIPE)
    assert done.returncode == 141 and "Error" not in done.stderr
    assert read_status(tmp_path / "done").word == "finished"
    words = ["train", *SMALL, "--epochs", "2", "--out", "left"]
    assert ended(tmp_path, words, stdout=pipe, stderr=pipe).returncode == 141
    os.close(pipe)
    assert json.loads((tmp_path / "left" / "summary.json").read_text())["status"] == "interrupted"
    done = ended(tmp_path, ["train", "--resume", "left"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0 and "2 (" in done.stdout and read_status(tmp_path / "left").word == "finished"
