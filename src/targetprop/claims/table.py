"""The table of claims: as plain text for the terminal, as Markdown for a page."""

from collections.abc import Sequence
from io import StringIO

from rich.box import Box
from rich.console import Console
from rich.table import Table

from targetprop.claims.claim import Claim, Number

_SHARES = {"claim": 20, "prediction": 22, "measured": 31, "where it stops holding": 27}
_NARROWEST = 96
_RULES = Box("────\n    \n────\n    \n────\n────\n    \n────\n")


def format_table(claims: Sequence[Claim], columns: int = 140) -> str:
    """Write the claims for a terminal, each as a row of wrapped cells."""
    width = max(columns, _NARROWEST)
    console = Console(width=width, file=StringIO(), color_system=None, markup=False, emoji=False, highlight=False)
    table = Table(box=_RULES, show_lines=True, show_edge=True, pad_edge=False, padding=(0, 1, 0, 0), expand=True)
    for title, share in _SHARES.items():
        table.add_column(title, ratio=share)
    for claim in claims:
        seeds = f"{len(claim.seeds)} seeds, " if len(claim.seeds) > 1 else ""
        verdict = f"{claim.name}: {claim.verdict.upper()}\n({seeds}{claim.seconds:.0f} s)"
        measured = Table.grid(padding=(0, 1, 0, 0))
        for number in claim.measured:
            measured.add_row(_mark(number), str(number))
        table.add_row(f"{claim.statement}\n{verdict}", claim.prediction, measured, claim.stops)
    with console.capture() as written:
        console.print(table)
    return "\n".join(line.rstrip() for line in written.get().splitlines())


def format_markdown(claims: Sequence[Claim]) -> str:
    """Write the claims as a Markdown table."""
    lines = ["| claim | prediction | measured | verdict | where it stops holding |", "|---|---|---|---|---|"]
    for claim in claims:
        measured = "<br>".join(map(str, claim.measured))
        cells = (claim.statement, claim.prediction, measured, f"**{claim.verdict}**", claim.stops)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _mark(number: Number) -> str:
    return "·" if not number.bounded else "✓" if number.holds else "✗"
