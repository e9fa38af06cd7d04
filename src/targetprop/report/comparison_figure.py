"""Curves of several runs, by step and by second: seeds as a mean with a band, runs that came to no end dashed."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from targetprop.report.comparison import Comparison, Group, Quantity, Run
from targetprop.report.style import COLOURS, RC, WIDTH, look

XS = {"step": "step", "seconds": "seconds in training steps"}
GREY = "#b5b5b5"
_HEIGHT = 2.7  # inches of a panel
_ROOM = 1.5  # times the highest loss after the first epoch of a run that does not diverge; others leave the panel


def draw_comparison(comparison: Comparison, xs: Sequence[str] = tuple(XS)) -> Figure:
    """Draw a row of panels per quantity and a column per kind of x axis."""
    quantities = _drawn(comparison)
    with rc_context(RC):
        rows = (len(comparison.groups[: len(COLOURS)]) + 2) // 2
        size = (WIDTH * len(xs), _HEIGHT * len(quantities) + 0.2 * rows)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(quantities), len(xs), squeeze=False, sharey="row")
        for row, quantity in zip(panels, quantities, strict=True):
            for axes, x in zip(row, xs, strict=True):
                _draw_panel(axes, comparison.groups, quantity, x)
            row[0].set_ylabel(quantity.title + (" (%)" if quantity.is_share else ""))
        for axes, x in zip(panels[-1], xs, strict=True):
            axes.set_xlabel(XS[x])
        columns = 2 if max(len(group.name) for group in comparison.groups) < 40 else 1
        style: dict[str, Any] = {"loc": "outside lower left", "frameon": False, "fontsize": 8.5}
        figure.legend(handles=_keys(comparison.groups), ncols=columns, **style)
    return figure


def colour(place: int) -> str:
    """Choose the colour of a group by its place in the table; only the first ones have their own."""
    return COLOURS[place] if place < len(COLOURS) else GREY


def _drawn(comparison: Comparison) -> list[Quantity]:
    """Choose losses and one accuracy: that on held-out data, or else on test data."""
    found = comparison.quantities
    return [q for q in found if not q.is_share] + [q for q in found if q.is_share][:1]


def _draw_panel(axes: Axes, groups: Sequence[Group], quantity: Quantity, x: str) -> None:
    for place, group in reversed(list(enumerate(groups))):
        counted = [run for run in group.counted if run.complete]
        if counted:
            _draw_mean(axes, [run.curve(quantity.key, x) for run in counted], _style(place))
        for run in group.runs:
            if not run.complete:
                _draw_incomplete(axes, run, quantity, x, colour(place))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=x == "step", min_n_ticks=1))
    axes.set_xlim(left=0)
    if quantity.is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
        return
    runs = [run for group in groups for run in group.runs if run.epochs]
    curves = [run.curve(quantity.key) for run in [run for run in runs if run.word != "diverged"] or runs]
    values = [value for curve in curves for _, value in curve]
    if values and min(values) > 0:
        low, high = min(values) / 1.2, _ROOM * max(curve[0][1] for curve in curves if curve)
        axes.set(yscale="log", ylim=(low, high))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        axes.yaxis.set_minor_formatter("{x:g}" if high < 100 * low else NullFormatter())


def _draw_mean(axes: Axes, curves: Sequence[Sequence[tuple[float, float]]], style: dict[str, Any]) -> None:
    epochs = list(zip(*curves, strict=False))
    if not epochs:
        return
    xs = [fmean(x for x, _ in points) for points in epochs]
    means = [fmean(y for _, y in points) for points in epochs]
    marked: dict[str, Any] = style if len(xs) <= 50 else style | {"marker": ""}
    axes.plot(xs, means, **marked)
    if len(curves) > 1:
        lows, highs = ([end(y for _, y in points) for points in epochs] for end in (min, max))
        axes.fill_between(xs, lows, highs, color=style["color"], alpha=0.2, linewidth=0, zorder=style["zorder"])


def _draw_incomplete(axes: Axes, run: Run, quantity: Quantity, x: str, shade: str) -> None:
    curve = run.curve(quantity.key, x)
    if curve:
        axes.plot(*zip(*curve, strict=True), color=shade, linestyle=":", linewidth=1.1, zorder=1.5)
        axes.plot(*curve[-1], marker="x", color=shade, markersize=6, zorder=1.6)


def _style(place: int) -> dict[str, Any]:
    if place >= len(COLOURS):
        return {"color": GREY, "linewidth": 1.0, "zorder": 1.0}
    return {**look(place), "markersize": 3.5, "linewidth": 1.4, "zorder": 3.0 - 0.01 * place}


def _keys(groups: Sequence[Group]) -> list[Line2D]:
    keys = [Line2D([], [], label=group.name, **_style(place)) for place, group in enumerate(groups[: len(COLOURS)])]
    if len(groups) > len(COLOURS):
        keys.append(Line2D([], [], label=f"{len(groups) - len(COLOURS)} others", **_style(len(COLOURS))))
    if any(sum(run.complete for run in group.runs) > 1 for group in groups):
        keys.append(Line2D([], [], color=COLOURS[0], alpha=0.25, linewidth=7, label="lowest to highest seed"))
    if any(not run.complete for group in groups for run in group.runs):
        keys.append(Line2D([], [], color="0.3", linestyle=":", marker="x", label="did not come to its end"))
    return keys
