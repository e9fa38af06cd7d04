"""The table of a comparison: the same cells for a terminal and for the page."""

from collections.abc import Sequence
from io import StringIO
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from targetprop.report.comparison import METHOD, SEED, Comparison, Group, Quantity, Run, shorten, spread


class Column(NamedTuple):
    """A column's title and whether it holds numbers."""

    title: str
    is_number: bool = False


def tabulate(comparison: Comparison) -> tuple[list[Column], list[list[str]]]:
    """Write the columns, and a row per group."""
    columns = [Column(name) for name in comparison.differing or [METHOD]] + [Column("seeds", is_number=True)]
    for quantity in comparison.quantities:
        title = f"{quantity.title} (%)" if quantity.is_share else quantity.title
        columns += [Column(title, is_number=True), Column("best", is_number=True)]
    columns += [Column("time (s)", is_number=True), Column("status")]
    return columns, [_row(group, comparison.quantities) for group in comparison.groups]


def format_comparison(comparison: Comparison) -> str:
    """Write the table and the notes as plain text."""
    columns, rows = tabulate(comparison)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column.title, justify="right" if column.is_number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(file=StringIO(), width=1000, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as written:
        console.print(table)
    lines = [*map(str.rstrip, written.get().splitlines()), *(["", *comparison.notes()] if comparison.notes() else [])]
    return "\n".join(lines)


def _row(group: Group, quantities: Sequence[Quantity]) -> list[str]:
    settings = [shorten(value) or "–" for value in group.settings.values()] or [group.name]
    cells = [*settings, _seeds(group.runs)]
    for quantity in quantities:
        write = _percent if quantity.is_share else "{:.3g}".format
        cells += [spread(group.finals(quantity), write), spread(group.bests(quantity), write)]
    return [*cells, spread(group.seconds(), "{:.1f}".format), group.statuses()]


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _seeds(runs: Sequence[Run]) -> str:
    """List seeds, or the first and the last of those that follow each other."""
    seeds = sorted({int(run.config.get(SEED, 0)) for run in runs})
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}–{seeds[-1]}"
    return ", ".join(map(str, seeds))
