"""What tests of runs share: the command, and the metrics that it left."""

import json
from pathlib import Path

from targetprop.experiments.main import main


def train(*arguments: object) -> int:
    """Run ``targetprop train``, and return its exit status."""
    return main(["train", *map(str, arguments)])


def metrics(run: Path) -> list[dict]:
    """Read the metrics of a run, but for times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
