"""``claims.html``: one page with every table and figure inside it, for a screen, a phone and print."""

from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure

from targetprop.claims.claim import Claim, Number, format_number
from targetprop.report.page import Cell, made_on, render_figure, render_page, render_table

_TITLE = "Deriving Differential Target Propagation from Iterating Approximate Inverses: its claims, measured"
_INTRODUCTION = """The paper (Y. Bengio 2020,
<a href="https://arxiv.org/abs/2007.15139">arXiv:2007.15139</a>) is theory. This page compares its predictions with
measurements by <code>targetprop verify</code>. A claim <em>holds</em> where every number that has a bound is within it,
for every seed."""


def render_claims(claims: Sequence[Claim], figures: Sequence[Figure]) -> str:
    """Write the page."""
    sections = [_section(claim, figure) for claim, figure in zip(claims, figures, strict=True)]
    head = f"<h1>{_TITLE}</h1><p>{_INTRODUCTION}</p>"
    return render_page("Claims, measured", [head, made_on(), _summary(claims), *sections])


def _summary(claims: Sequence[Claim]) -> str:
    rows = [
        (
            Cell(f'<a href="#{claim.name}">{escape(claim.statement)}</a>', is_html=True), claim.prediction,
            Cell(_decisive(claim), is_html=True), Cell(claim.verdict, f"verdict {claim.verdict}"), claim.stops,
        )
        for claim in claims
    ]  # fmt: skip
    head = ("claim", "prediction", "measured", "verdict", "where it stops holding")
    return render_table(head, rows, kind="summary")


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
            f'<div class="columns">{render_figure(figure, claim.statement, claim.name)}<div>',
            _numbers("Measured", claim.measured),
            f"<p>Where it stops holding: {escape(claim.stops)}</p>",
            _numbers("Limits", claim.limits) if claim.limits else "",
            "</div></div>",
            *(render_table(table.columns, map(_row, table.rows), table.title) for table in claim.tables),
            f"<p><small>seed {seeds}; tables and figure show seed {claim.seeds[0]}; {claim.seconds:.1f} s</small></p>",
            "</section>",
        ]
    )


def _numbers(title: str, numbers: Sequence[Number]) -> str:
    bounded = any(n.bounded for n in numbers)
    rows = []
    for n in numbers:
        bound = [Cell(n.allowed, "number"), Cell(_mark(n), is_html=True)] if bounded else []
        rows.append([n.what, Cell(n.spread, "number"), *bound])
    return render_table(("", "value", "bound", "") if bounded else ("", "value"), rows, title)


def _mark(number: Number) -> str:
    if not number.bounded:
        return ""
    return '<span class="verdict holds">✓</span>' if number.holds else '<span class="verdict fails">✗</span>'


def _row(cells: Sequence[str | float]) -> list[str | Cell]:
    return [cell if isinstance(cell, str) else Cell(format_number(cell), "number") for cell in cells]
