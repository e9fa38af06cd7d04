"""The table of claims: as plain text for the terminal, as Markdown for a README."""

from collections.abc import Sequence
from textwrap import wrap

from targetprop.claims.claim import Claim, Number

_SHARES = (0.2, 0.22, 0.31, 0.27)  # claim with its verdict, prediction, measured, where it stops
_NARROWEST = 96


def format_table(claims: Sequence[Claim], columns: int = 140) -> str:
    """Write the claims for a terminal, each as a row of wrapped cells."""
    widths = [int(share * (max(columns, _NARROWEST) - 6)) for share in _SHARES]
    titles = ("claim", "prediction", "measured", "where it stops holding")
    rule = "─" * (sum(widths) + 6)
    lines = [rule, *_row([[title] for title in titles], widths), rule]
    for claim in claims:
        lines += [*_row(_cells(claim, widths), widths), rule]
    return "\n".join(lines)


def format_markdown(claims: Sequence[Claim]) -> str:
    """Write the claims as a Markdown table."""
    lines = ["| claim | prediction | measured | verdict | where it stops holding |", "|---|---|---|---|---|"]
    for claim in claims:
        measured = "<br>".join(describe(number) for number in claim.measured)
        cells = (claim.statement, claim.prediction, measured, f"**{claim.verdict}**", claim.stops)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def describe(number: Number) -> str:
    """Write a number with what it must be.

    >>> describe(Number("slope", (2.0,), at_least=1.9, at_most=2.1))
    'slope: 2 (1.9 to 2.1)'
    """
    return f"{number} ({number.allowed})" if number.bounded else str(number)


def _cells(claim: Claim, widths: list[int]) -> list[list[str]]:
    seeds = f"{len(claim.seeds)} seeds, " if len(claim.seeds) > 1 else ""
    verdict = [f"{claim.name}: {claim.verdict.upper()}", f"({seeds}{claim.seconds:.0f} s)"]
    measured = []
    for number in claim.measured:
        mark = "·" if not number.bounded else "✓" if number.holds else "✗"
        measured += wrap(f"{mark} {describe(number)}", widths[2], subsequent_indent="  ")
    return [
        [*wrap(claim.statement, widths[0]), *verdict],
        wrap(claim.prediction, widths[1]),
        measured,
        wrap(claim.stops, widths[3]),
    ]


def _row(cells: list[list[str]], widths: list[int]) -> list[str]:
    height = max(len(cell) for cell in cells)
    padded = [[*cell, *[""] * (height - len(cell))] for cell in cells]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*padded, strict=True)
    ]
