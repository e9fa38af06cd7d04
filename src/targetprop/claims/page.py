"""``claims.html``: one page with every table and figure inside it, for a screen, a phone and print."""

from collections.abc import Iterable, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from platform import machine, system

import matplotlib
import torch
from matplotlib.figure import Figure

import targetprop as tp
from targetprop.claims.claim import Claim, Number, format_number

_STYLE = "\n" + Path(__file__).with_name("page.css").read_text(encoding="utf-8")
_TITLE = "Deriving Differential Target Propagation from Iterating Approximate Inverses: its claims, measured"
_INTRODUCTION = """The paper (Y. Bengio 2020,
<a href="https://arxiv.org/abs/2007.15139">arXiv:2007.15139</a>) is theory. This page compares its predictions with
measurements by <code>targetprop verify</code>. A claim <em>holds</em> where every number that has a bound is within it,
for every seed."""


def render_page(claims: Sequence[Claim], figures: Sequence[Figure]) -> str:
    """Write the page."""
    made_on = f"targetprop {tp.__version__}, torch {torch.__version__}, {system()} {machine()}"
    sections = [_section(claim, figure) for claim, figure in zip(claims, figures, strict=True)]
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Claims, measured</title><style>{_STYLE}</style></head><body>",
            f"<h1>{_TITLE}</h1><p>{_INTRODUCTION}</p><p><small>{escape(made_on)}</small></p>",
            _summary(claims),
            *sections,
            "</body></html>",
        ]
    )


def _summary(claims: Sequence[Claim]) -> str:
    rows = [
        f'<tr><td><a href="#{claim.name}">{escape(claim.statement)}</a></td><td>{escape(claim.prediction)}</td>'
        f'<td>{_decisive(claim)}</td><td class="verdict {claim.verdict}">{claim.verdict}</td>'
        f"<td>{escape(claim.stops)}</td></tr>"
        for claim in claims
    ]
    head = ("claim", "prediction", "measured", "verdict", "where it stops holding")
    return _table(head, rows, attributes=' class="summary"')


def _decisive(claim: Claim) -> str:
    """The numbers that make the verdict, or all of them if there is none to make."""
    decisive = [number for number in claim.measured if number.bounded] or claim.measured
    return f"<ul>{''.join(f'<li>{escape(str(number))} {_mark(number)}</li>' for number in decisive)}</ul>"


def _section(claim: Claim, figure: Figure) -> str:
    seeds = ", ".join(map(str, claim.seeds))
    return "\n".join(
        [
            f'<section id="{claim.name}"><h2>{escape(claim.statement)} <span class="verdict {claim.verdict}">'
            f"{claim.verdict}</span></h2>",
            f"<p>Prediction: {escape(claim.prediction)}</p>",
            f'<div class="columns"><figure>{_svg(claim, figure)}</figure><div>',
            _numbers("Measured", claim.measured),
            f"<p>Where it stops holding: {escape(claim.stops)}</p>",
            _numbers("Limits", claim.limits) if claim.limits else "",
            "</div></div>",
            *(_table(table.columns, map(_row, table.rows), table.title) for table in claim.tables),
            f"<p><small>seed {seeds}; tables and figure show seed {claim.seeds[0]}; {claim.seconds:.1f} s</small></p>",
            "</section>",
        ]
    )


def _numbers(title: str, numbers: Sequence[Number]) -> str:
    bounded = any(n.bounded for n in numbers)
    rows = []
    for n in numbers:
        bound = f'<td class="number">{escape(n.allowed)}</td><td>{_mark(n)}</td>' if bounded else ""
        rows.append(f'<tr><td>{escape(n.what)}</td><td class="number">{escape(n.spread)}</td>{bound}</tr>')
    return _table(("", "value", "bound", "") if bounded else ("", "value"), rows, title)


def _mark(number: Number) -> str:
    if not number.bounded:
        return ""
    return '<span class="verdict holds">✓</span>' if number.holds else '<span class="verdict fails">✗</span>'


def _row(cells: Sequence[str | float]) -> str:
    written = (
        f"<td>{escape(cell)}</td>" if isinstance(cell, str) else f'<td class="number">{format_number(cell)}</td>'
        for cell in cells
    )
    return f"<tr>{''.join(written)}</tr>"


def _table(columns: Sequence[str], rows: Iterable[str], title: str = "", attributes: str = "") -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    return f'<div class="wide"><table{attributes}>{caption}<tr>{head}</tr>{"".join(rows)}</table></div>'


def _svg(claim: Claim, figure: Figure) -> str:
    buffer = StringIO()
    # A salt of its own keeps the names inside one picture from meaning something in another.
    with matplotlib.rc_context({"svg.hashsalt": claim.name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(claim.statement)}"', 1)
