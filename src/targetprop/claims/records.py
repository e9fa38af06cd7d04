"""Reads the record of measured claims again, as ``targetprop verify`` wrote it."""

import json
from dataclasses import fields
from math import nan
from pathlib import Path
from typing import Any

from targetprop.claims.claim import Claim, Number


def read_records(path: Path) -> list[Claim]:
    """Read the claims; what was not finite is NaN."""
    return [_claim(values) for values in json.loads(path.read_text(encoding="utf-8"))]


def _claim(values: dict[str, Any]) -> Claim:
    kept: dict[str, Any] = {field.name: values[field.name] for field in fields(Claim)}
    kept["measured"] = tuple(_number(number) for number in kept["measured"])
    return Claim(**kept)


def _number(kept: dict[str, Any]) -> Number:
    values: Any = tuple(nan if value is None else value for value in kept.pop("values"))
    return Number(values=values, **kept)
