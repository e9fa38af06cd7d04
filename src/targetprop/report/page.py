"""What all pages are made of: one style sheet, tables, and figures within the page, which a text describes.

>>> render_table(["loss"], [[Cell("< 1", "number")]])
'<div class="wide"><table><tr><th>loss</th></tr><tr><td class="number">&lt; 1</td></tr></table></div>'
"""

from collections.abc import Iterable, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from platform import machine, system
from typing import NamedTuple

import matplotlib
import torch
from matplotlib.figure import Figure

import targetprop as tp

_STYLE = "\n" + Path(__file__).with_name("page.css").read_text(encoding="utf-8")


class Cell(NamedTuple):
    """A cell of a table that is more than a text."""

    content: str
    kind: str = ""  # its class in the style sheet
    is_html: bool = False


def render_page(title: str, body: Iterable[str]) -> str:
    """Write a page that needs no other file."""
    head = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
    ]
    return "\n".join([*head, *body, "</body></html>"])


def made_on() -> str:
    """Name the releases and the machine of a page."""
    versions = f"targetprop {tp.__version__}, torch {torch.__version__}, {system()} {machine()}"
    return f"<p><small>{escape(versions)}</small></p>"


def render_table(
    columns: Sequence[str | Cell], rows: Iterable[Sequence[str | Cell]], title: str = "", kind: str = ""
) -> str:
    """Write a table, which scrolls by itself where the screen is narrower."""
    head = "".join(_render_cell(column, "th") for column in columns)
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    body = "".join(f"<tr>{''.join(map(_render_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table{_class(kind)}>{caption}<tr>{head}</tr>{body}</table></div>'


def render_list(texts: Iterable[str]) -> str:
    """Write a list of sentences, or nothing where there are none."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def render_figure(figure: Figure, text: str, name: str) -> str:
    """Put a figure into the page; ``name`` is its own within the page."""
    buffer = StringIO()
    # A salt of its own keeps the names inside one picture from meaning something in another.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(text)}"', 1)
    return f"<figure>{svg}</figure>"


def _render_cell(cell: str | Cell, tag: str = "td") -> str:
    if isinstance(cell, str):
        cell = Cell(cell)
    return f"<{tag}{_class(cell.kind)}>{cell.content if cell.is_html else escape(cell.content)}</{tag}>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
