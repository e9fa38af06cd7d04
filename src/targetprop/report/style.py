"""How figures look: panels below each other, wide as a phone, predictions dashed and black."""

from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 5.6  # inches; with 10-point letters still legible when a phone shrinks it to its own width
PREDICTION: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.4}
COLOURS = ("#1f5fa8", "#d1603d", "#3a923a", "#8456a5", "#b8860b", "#c2568f", "#5b7f95")
MARKERS = "os^DvPX"
RC: Any = {"font.size": 10, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False}


def new_figure(panels: int, height: float = 3.3) -> tuple[Figure, list[Axes]]:
    """Make a figure with panels below each other."""
    with rc_context(RC):
        figure = Figure(figsize=(WIDTH, panels * height), layout="constrained")
        axes = figure.subplots(panels, 1, squeeze=False)
        return figure, [row[0] for row in axes]


def look(i: int, markers: str = MARKERS) -> dict[str, Any]:
    """Choose the colour and the marker of a series."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": markers[i % len(markers)]}


def label(axes: Axes, title: str, x: str, y: str) -> None:
    """Name a panel and its axes."""
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    axes.set(xlabel=x, ylabel=y)


def legend(axes: Axes, columns: int = 2) -> None:
    """Put the legend below a panel, where it hides nothing."""
    below = (0.0, -0.19)
    axes.legend(loc="upper left", bbox_to_anchor=below, ncols=columns, fontsize=8.5, frameon=False, borderaxespad=0)
