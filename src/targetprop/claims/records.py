"""``claims.json``: the records as plain values, and back."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from targetprop.claims.claim import Claim, Number, Table
from targetprop.runs.atomic import write_atomic
from targetprop.runs.encode import encode_json


def write_records(path: Path, claims: Sequence[Claim]) -> None:
    """Write records, each with its verdict."""
    write_atomic(path, encode_json([{"verdict": claim.verdict} | asdict(claim) for claim in claims]))


def read_records(path: Path) -> list[Claim]:
    """Read what `write_records` wrote."""
    return [_claim(values) for values in json.loads(path.read_text(encoding="utf-8"))]


def _claim(values: dict[str, Any]) -> Claim:
    kept = {field.name: values[field.name] for field in fields(Claim)}
    for group in ("measured", "limits"):
        kept[group] = tuple(Number(**{**n, "values": tuple(map(_number, n["values"]))}) for n in values[group])
    kept["tables"] = tuple(
        Table(t["title"], tuple(t["columns"]), tuple(tuple(map(_number, row)) for row in t["rows"]))
        for t in values["tables"]
    )
    return Claim(**{**kept, "seeds": tuple(values["seeds"])})


def _number(value: Any) -> Any:
    return float("nan") if value is None else value
