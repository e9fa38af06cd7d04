"""``compare.html``: the table and the figure of a comparison in one file, for a screen, a phone and print."""

from html import escape

from targetprop.report.comparison import Comparison
from targetprop.report.comparison_figure import XS, colour, draw_comparison
from targetprop.report.comparison_table import Column, tabulate
from targetprop.report.page import Cell, made_on, render_figure, render_list, render_page, render_table


def render_comparison(comparison: Comparison) -> str:
    """Write the page."""
    runs, groups = len(comparison.runs), len(comparison.groups)
    title = f"{runs} {'run' if runs == 1 else 'runs'} compared"
    kinds = f"{groups} configurations" if groups > 1 else "one configuration"
    several = any(len(group.runs) > 1 for group in comparison.groups)
    seeds = " Several seeds: the mean, and the lowest and the highest." if several else ""
    words = f"{kinds.capitalize()}, best first; values after the last epoch, and the best of all epochs.{seeds}"
    figures = [
        render_figure(draw_comparison(comparison, [x]), _describe(comparison, words), f"compare-{x}")
        for x, words in XS.items()
    ]
    return render_page(
        title,
        [
            f"<h1>{title}</h1><p>{words}</p>",
            _table(comparison),
            render_list(comparison.notes()),
            f'<div class="columns">{"".join(figures)}</div>',
            _common(comparison),
            made_on(),
        ],
    )


def _table(comparison: Comparison) -> str:
    columns, rows = tabulate(comparison)
    written = []
    for place, row in enumerate(rows):
        key = f'<span class="key" style="background: {colour(place)}"></span> '
        cells = [_cell(column, text) for column, text in zip(columns, row, strict=True)]
        written.append([Cell(key + escape(row[0]), "whole", is_html=True), *cells[1:]])
    return render_table([Cell(column.title, "number" if column.is_number else "") for column in columns], written)


def _cell(column: Column, text: str) -> Cell:
    """Put the spread of several seeds below their mean, and the epoch below the word of a status."""
    first, space, rest = escape(text).partition(" (" if column.is_number else " at ")
    below = f"<br><small>{space.lstrip()}{rest}</small>" if rest else ""
    return Cell(first + below, "number" if column.is_number else "whole", is_html=True)


def _describe(comparison: Comparison, x: str) -> str:
    quantities = " and ".join(quantity.title for quantity in comparison.quantities)
    names = "; ".join(group.name for group in comparison.groups)
    return f"Curves of {quantities} by {x} of: {names}. The table above has their last and best values."


def _common(comparison: Comparison) -> str:
    rows = [[name, value] for name, value in comparison.common.items()]
    return f"<details><summary>What all runs have alike</summary>{render_table(('setting', 'value'), rows)}</details>"
