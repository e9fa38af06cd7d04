"""Plain values as JSON."""

import json
from math import isfinite
from typing import Any


def encode_line(record: dict[str, Any]) -> bytes:
    """Write plain values as a line of a JSON Lines file."""
    return f"{json.dumps(_finite(record), allow_nan=False)}\n".encode()


def encode_json(value: Any) -> bytes:
    """Write plain values for a person and a program to read."""
    return f"{json.dumps(_finite(value), indent=2, allow_nan=False, ensure_ascii=False)}\n".encode()


def _finite(value: Any) -> Any:
    """Write null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
