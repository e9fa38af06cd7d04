"""A small share of ``make reliability``: kills, stops, full disks and damaged files."""

import json
from pathlib import Path

import pytest

import new_process

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
    code, said = new_process.run_script("reliability", BENCHMARKS, "--fast", "--out", out, "--only", *PARTS)
    assert out.exists(), said[-3000:]
    found = json.loads(out.read_text())["parts"]
    assert (code == 0) == all(part["failures"] == [] for part in found.values())
    assert found.keys() == set(PARTS)
    return found


@pytest.mark.parametrize("name", PARTS)
def test_nothing_is_lost_and_nothing_is_taken_for_granted(parts, name):
    assert parts[name]["failures"] == []
    assert [figure for figure, least in LEAST.get(name, {}).items() if parts[name][figure] < least] == []
