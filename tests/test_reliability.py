"""A small share of ``make reliability``: kills, stops, full disks and damaged files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# Each group is a process of its own, since its runs are forked from it.
GROUPS = {
    "interruptions": ("kill", "kill_writes", "stop", "full_disk"),
    "damage": ("damaged_data", "damaged_runs", "wrong_config"),
}


@pytest.mark.parametrize("group", GROUPS)
def test_nothing_is_lost_and_nothing_is_taken_for_granted(group, tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "reliability", "--fast", "--out", str(out), "--only", *GROUPS[group]]
    done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    parts = json.loads(out.read_text())["parts"]
    assert parts.keys() == set(GROUPS[group])
    for name, count in (("kill", "kills"), ("kill_writes", "kills"), ("stop", "stops")):
        assert name not in parts or parts[name][count] >= 4
    for part in parts.values():
        assert part["failures"] == []
        assert part.get("equal", 1) > 0
