"""The table of claims: as plain text for the terminal, as Markdown for docs/claims.md."""

from collections.abc import Sequence
from dataclasses import replace
from io import StringIO

from rich.box import Box
from rich.console import Console
from rich.table import Table

from targetprop.claims.claim import Claim, Number

_SHARES = {"claim": 23, "prediction": 22, "measured": 31, "where it stops holding": 24}
_NARROWEST = 96
_RULES = Box("────\n    \n────\n    \n────\n────\n    \n────\n")
_KEY_NUMBERS = {  # what the short table shows of a claim and calls it; of the others, the first number
    "convergence": ("largest error / ρᵏ e_0", "error / ρᵏ e_0"),
    "joint-sweeps": ("last factor per sweep / ρ, smallest", "factor per sweep / ρ"),
    "gauss-newton": ("smallest cosine of weight changes after 64 steps", "cosine of weight changes"),
    "normalisation": (
        "activations, normalised: rank correlation of sizes with back-propagation's",
        "rank correlation of sizes",
    ),
    "bridge": ("learned decoders, largest ‖J_g − J_g*‖ / ‖J_g*‖", "decoders' error"),
    "local-learning": ("together, denoising: largest median contraction factor", "denoising, contraction factor"),
    "damped-inverses": (
        "together, weight inverse: largest median contraction factor",
        "weight inverse, contraction factor",
    ),
    "optimiser": (
        "least squares: steps to back-propagation's final loss, in units of its",
        "least squares, steps / back-propagation's",
    ),
}


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
    """Write claim, key number and verdict as a Markdown table."""
    lines = ["| claim | key number | verdict |", "|---|---|---|"]
    for claim in claims:
        lines.append(_markdown_row(claim.statement, str(_key_number(claim)), f"**{claim.verdict}**"))
    return "\n".join(lines)


def format_details(claim: Claim) -> str:
    """Write all that was measured of a claim in Markdown, for docs/claims.md."""
    seeds = ", ".join(map(str, claim.seeds))
    lines = [f"Prediction: {_literal(claim.prediction)}.", "", f"Seeds {seeds}: **{claim.verdict}**.", ""]
    lines += ["| measured | value | bound |", "|---|---|---|"]
    lines += [_markdown_row(_literal(number.what), number.spread, number.allowed) for number in claim.measured]
    return "\n".join([*lines, "", f"Where it stops holding (seed {claim.seeds[0]}): {_literal(claim.stops)}"])


def _key_number(claim: Claim) -> Number:
    what, name = _KEY_NUMBERS.get(claim.name, ("", ""))
    found = next((number for number in claim.measured if number.what == what), None)
    return claim.measured[0] if found is None else replace(found, what=name)


def _markdown_row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _literal(text: str) -> str:
    return text.replace("*", r"\*")


def _mark(number: Number) -> str:
    return "·" if not number.bounded else "✓" if number.holds else "✗"
