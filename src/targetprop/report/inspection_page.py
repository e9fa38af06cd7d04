"""``inspection.html``: what to change, the table and the figure of an inspection in one file."""

from html import escape
from typing import Any

from matplotlib.figure import Figure

from targetprop.report.page import made_on, render_figure, render_list, render_page


def render_inspection(record: dict[str, Any], table: str, figure: Figure) -> str:
    """Write the page; the table is the one that the terminal shows."""
    title = f"Inspection of {record['method']} on {record['data']}, seed {record['seed']}"
    text = f"Measured layer by layer: {'; '.join(axes.get_title(loc='left') for axes in figure.axes)}"
    return render_page(
        title,
        [
            f"<h1>{escape(title)}</h1>",
            render_list(layer["advice"] for layer in record["layers"]),
            f"<pre>{escape(table)}</pre>",
            render_figure(figure, text, "inspection"),
            made_on(),
        ],
    )
