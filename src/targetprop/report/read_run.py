"""Reads what a run folder holds."""

import json
from pathlib import Path
from typing import Any

METRICS, SUMMARY = "metrics.jsonl", "summary.json"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the lines of ``metrics.jsonl``.

    Args:
        run: the run's folder.

    Returns:
        One record per complete line, in order; a last line that a crash cut off is left out.
    """
    path = run / METRICS
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def read_summary(run: Path) -> dict[str, Any]:
    """Read ``summary.json``.

    Args:
        run: the run's folder.

    Returns:
        Its entries.
    """
    return json.loads((run / SUMMARY).read_text(encoding="utf-8"))
