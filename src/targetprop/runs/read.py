"""Reads what a run folder holds."""

import json
from pathlib import Path
from typing import Any

METRICS, SUMMARY = "metrics.jsonl", "summary.json"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the lines of ``metrics.jsonl``."""
    path = run / METRICS
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [_read_object(line, f"line {number} of {path}") for number, line in enumerate(lines, 1)]


def read_summary(run: Path) -> dict[str, Any]:
    """Read ``summary.json``."""
    return _read_object((run / SUMMARY).read_bytes(), str(run / SUMMARY))


def _read_object(content: bytes, place: str) -> dict[str, Any]:
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is damaged ({error}); put a copy back in its place") from error
    if not isinstance(value, dict):
        raise ValueError(f"{place} is damaged (it holds no entries); put a copy back in its place")
    return value
