"""The table of claims: as plain text for the terminal, as Markdown for the README and docs/claims.md."""

from collections.abc import Sequence
from textwrap import wrap

from targetprop.claims.claim import Claim, Number

_SHARES = (0.2, 0.22, 0.31, 0.27)  # claim with its verdict, prediction, measured, where it stops
_NARROWEST = 96
_KEY_NUMBERS = {  # what the README shows of a claim; of the others, the first number
    "convergence": "largest error / ρᵏ e_0",
    "gauss-newton": "smallest cosine of weight changes after 64 steps",
    "normalisation": "activations, normalised: rank correlation of sizes with back-propagation's",
    "optimiser": "least squares: steps to back-propagation's final loss, in units of its",
}


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
    """Write claim, key number and verdict as the Markdown table of the README."""
    lines = ["| claim | key number | verdict |", "|---|---|---|"]
    for claim in claims:
        lines.append(_markdown_row(claim.statement, describe(_key_number(claim)), f"**{claim.verdict}**"))
    return "\n".join(lines)


def format_details(claim: Claim) -> str:
    """Write all that was measured of a claim in Markdown, for docs/claims.md."""
    seeds = ", ".join(map(str, claim.seeds))
    lines = [f"Prediction: {claim.prediction}.", "", f"Seeds {seeds}: **{claim.verdict}**.", ""]
    lines += ["| measured | value | bound |", "|---|---|---|"]
    lines += [_markdown_row(number.what, number.spread, number.allowed) for number in claim.measured]
    return "\n".join([*lines, "", f"Where it stops holding (seed {claim.seeds[0]}): {claim.stops}"])


def describe(number: Number) -> str:
    """Write a number with what it must be.

    >>> describe(Number("slope", (2.0,), at_least=1.9, at_most=2.1))
    'slope: 2 (1.9 to 2.1)'
    """
    return f"{number} ({number.allowed})" if number.bounded else str(number)


def _key_number(claim: Claim) -> Number:
    return next((number for number in claim.measured if number.what == _KEY_NUMBERS.get(claim.name)), claim.measured[0])


def _markdown_row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


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
