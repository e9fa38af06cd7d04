"""Write the tables of docs/claims.md anew from the record of ``targetprop verify --seeds 3``.

    targetprop verify --seeds 3 --out /tmp/claims && cp /tmp/claims/claims.json benchmarks/results/
    python benchmarks/claims_tables.py

A table stands between ``<!-- claims: NAME -->`` and ``<!-- end -->``; NAME is a claim's, or ``all``.
"""

import re
from pathlib import Path

from targetprop.claims.records import read_records
from targetprop.claims.table import format_details, format_markdown

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Read the record and fill the page."""
    claims = read_records(ROOT / "benchmarks" / "results" / "claims.json")
    tables = {"all": format_markdown(claims), **{claim.name: format_details(claim) for claim in claims}}
    _fill(ROOT / "docs" / "claims.md", tables)


def _fill(page: Path, tables: dict[str, str]) -> None:
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        start, end = f"<!-- claims: {name} -->\n", "\n<!-- end -->"
        text, found = re.subn(f"{start}.*?{end}", lambda _, new=start + table + end: new, text, flags=re.S)
        if found != 1:
            raise SystemExit(f"{page} must have one line '{start.strip()}' with a line '{end.strip()}' below it")
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
