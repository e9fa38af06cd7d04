"""A small share of ``make reliability``: kills, stops, full disks and damaged files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PARTS = ("kill", "kill_writes", "stop", "full_disk", "damaged_data", "damaged_runs", "wrong_config")
# Figures that say whether a part did what it is there for.
LEAST = {
    "kill": {"kills": 4, "equal": 1},
    "kill_writes": {"kills": 4, "equal": 4},
    "stop": {"stops": 4, "equal": 4},
    "full_disk": {"full_once": 3, "full_from_there_on": 3, "file_size_limits": 2, "equal": 8},
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """What a process of its own found, since its runs are forked from it."""
    out = tmp_path_factory.mktemp("reliability") / "figures.json"
    command = [sys.executable, "-m", "reliability", "--fast", "--out", str(out), "--only", *PARTS]
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=BENCHMARKS, env=one, capture_output=True, text=True, check=False)
    assert out.exists(), done.stderr[-3000:]
    found = json.loads(out.read_text())["parts"]
    assert (done.returncode == 0) == all(part["failures"] == [] for part in found.values())
    assert found.keys() == set(PARTS)
    return found


@pytest.mark.parametrize("name", PARTS)
def test_nothing_is_lost_and_nothing_is_taken_for_granted(parts, name):
    assert parts[name]["failures"] == []
    assert [figure for figure, least in LEAST.get(name, {}).items() if parts[name][figure] < least] == []
