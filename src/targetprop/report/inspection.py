"""``inspection.png``: what ``targetprop inspect`` measured of a run, from its folder."""

import json
from collections.abc import Callable
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from targetprop.report.style import COLOURS, PREDICTION, RC, WIDTH

INSPECTION = "inspection.json"
_HEIGHT = 2.7  # inches of a panel
_BLUE, _ORANGE, _GREEN, _GREY = *COLOURS[:3], "#c9c9c9"
_RC: Any = {
    **RC, "axes.grid.axis": "y", "axes.axisbelow": True, "hatch.linewidth": 0.6,
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "legend.fontsize": 8.5, "legend.frameon": False,
}  # fmt: skip
_ITERATIONS = ("input-space", "output-space")  # the other rules need no step that shrinks differences
_ONCE = ("difference", "direct")  # these take no steps
_CROWD = 14  # layers; beyond it their names stand upright
_WIDE_RANGE = 4.0  # a contraction factor beyond which the axis is logarithmic
Layer = dict[str, Any]


def draw_inspection(run: Path) -> Figure:
    """Draw the inspection of a run, panels below each other, a place per layer."""
    record = json.loads((run / INSPECTION).read_text(encoding="utf-8"))
    layers, names = record["layers"], [layer["name"] for layer in record["layers"]]
    with rc_context(_RC):
        panels = _panels(record, layers)
        figure = Figure(figsize=(WIDTH, len(panels) * _HEIGHT + 0.5), layout="constrained")
        axes = list(figure.subplots(len(panels), 1))
        for ax, draw in zip(axes, panels, strict=True):
            draw(ax)
            ax.set_xticks(range(len(names)), names, rotation=90 if len(names) > _CROWD else 0)
            ax.set_xlim(-0.5, len(names) - 0.5)
            ax.set_xlabel("layer, from input to output")
            ax.legend(loc="lower left", bbox_to_anchor=(0.0, 0.99), ncols=3, borderaxespad=0.0, columnspacing=1.2)
        where = f"{record['method']} on {record['data']}, seed {record['seed']}, after epoch {record['epoch']}"
        figure.suptitle(f"{where}\nmedians over {record['samples']} test samples", fontsize=10.5)
    return figure


def _panels(record: dict[str, Any], layers: list[Layer]) -> list[Callable[[Axes], None]]:
    """Choose what says something about the method: of steps where it takes some, of residuals where it inverts."""
    rule = record["inversion"]["rule"]
    transposes = rule in _ONCE and all(layer["inverse"]["kind"] == "mirrored" for layer in layers if layer["inverse"])
    panels: list[Callable[[Axes], None]] = []
    if rule in _ITERATIONS:
        panels.append(lambda ax: _draw_contraction(ax, layers))
    if not transposes:
        panels.append(lambda ax: _draw_residuals(ax, layers, record["extra_steps"]))
    if rule not in _ONCE:
        panels.append(lambda ax: _draw_shares(ax, layers, record["trial_steps"]))
    return [*panels, lambda ax: _draw_angles(ax, layers), lambda ax: _draw_influence(ax, layers)]


def _draw_contraction(axes: Axes, layers: list[Layer]) -> None:
    places, (median, largest) = _of_inverses(layers, "contraction", "contraction_max")
    axes.vlines(places, median, largest, color=_BLUE, linewidth=1.2)
    axes.plot(places, largest, "_", color=_BLUE, markersize=11, label="largest")
    axes.plot(places, median, "o", color=_BLUE, label="median")
    axes.axhline(1.0, **PREDICTION, label="converges below 1")
    if max(largest, default=0.0) > _WIDE_RANGE:
        _scale_by_decades(axes, [1.0, *median, *largest])
    else:
        axes.set_ylim(0.0, 1.1 * max(1.2, *largest, 0.0))
    _name(axes, "Does iterating the inverse converge?", "norm of one step\n(id − α f∘g, or g∘f)")
    _mark_first(axes)


def _draw_residuals(axes: Axes, layers: list[Layer], extra: int) -> None:
    places, (run, further) = _of_inverses(layers, "residual", "residual_iterated")
    axes.vlines(places, further, run, color=_GREY, linewidth=1.2)
    axes.plot(places, run, "o", color=_BLUE, markersize=9, markerfacecolor="none", label="as in the run")
    axes.plot(places, further, "s", color=_ORANGE, markersize=4.5, label=f"{extra} steps on")
    axes.axhline(1.0, **PREDICTION, label="no progress")
    axes.set_ylim(0.0, 1.1 * max(1.2, *run, *further, 0.0))
    _name(axes, "How much of the target is missed?", "residual\n‖t − f(x)‖ / ‖t − y₀‖")
    _mark_first(axes)


def _draw_shares(axes: Axes, layers: list[Layer], trial: int) -> None:
    places, (converged, diverged) = _of_inverses(layers, "converged", "diverged")
    rest = [1 - a - b for a, b in zip(converged, diverged, strict=True)]
    below = [0.0] * len(places)
    for shares, colour, hatch, label in (
        (converged, _BLUE, "", "converge"),
        (rest, _GREY, "..", "still moving"),
        (diverged, _ORANGE, "//", "diverge"),
    ):
        percent = [100 * share for share in shares]
        axes.bar(places, percent, 0.6, below, color=colour, hatch=hatch, edgecolor="white", label=label)
        below = [a + b for a, b in zip(below, percent, strict=True)]
    axes.set_ylim(0, 100)
    _name(axes, f"Where do {trial} steps lead?", "samples (%)")
    _mark_first(axes)


def _draw_angles(axes: Axes, layers: list[Layer]) -> None:
    top = 95.0
    for name, marker, size, colour, label in (
        ("angle_backprop", "o", 9, _BLUE, "to back-propagation"),
        ("angle_gauss_newton", "s", 6, _ORANGE, "to Gauss-Newton"),
        ("angle_gradient", "^", 4.5, _GREEN, "of the gradient"),
    ):
        places, angles = _of_layers(layers, name)
        inside = "none" if marker == "o" else colour
        style: dict[str, Any] = {"marker": marker, "markersize": size, "markerfacecolor": inside, "color": colour}
        axes.plot(places, angles, linewidth=1, label=label, **style)
        top = max(top, *angles, 0.0)
    axes.axhline(90.0, **PREDICTION)
    axes.text(0.99, 91, "90°: unrelated", transform=axes.get_yaxis_transform(), fontsize=8.5, ha="right", va="bottom")
    axes.set_ylim(-4, top + 13)
    axes.set_yticks(range(0, 181 if top > 110 else 91, 30))
    _name(axes, "Where do the targets point?", "angle (degrees)")


def _draw_influence(axes: Axes, layers: list[Layer]) -> None:
    places, influence = _of_layers(layers, "influence")
    axes.plot(places, influence, "o-", color=_BLUE, linewidth=1, label="before normalisation")
    axes.axhline(1.0, **PREDICTION, label="the target moves as far as the output's")
    _scale_by_decades(axes, [1.0, *influence])
    _name(axes, "How large are the targets?", "influence\n‖Δ_L‖ / ‖Δ_l‖")


def _of_layers(layers: list[Layer], name: str) -> tuple[list[int], list[float]]:
    found = [(i, layer[name]) for i, layer in enumerate(layers) if layer[name] is not None]
    return [i for i, _ in found], [value for _, value in found]


def _of_inverses(layers: list[Layer], *names: str) -> tuple[list[int], list[list[float]]]:
    """Collect numbers of those layers that have all of them."""
    rows = [(i, [layer["inverse"][name] for name in names]) for i, layer in enumerate(layers) if layer["inverse"]]
    rows = [(i, values) for i, values in rows if None not in values]
    return [i for i, _ in rows], [[values[k] for _, values in rows] for k in range(len(names))]


def _scale_by_decades(axes: Axes, values: list[float]) -> None:
    """Make the axis logarithmic, from one power of ten to another, with plain numbers at them."""
    low, high = floor(log10(min(values)) - 0.02), ceil(log10(max(values)) + 0.02)
    axes.set(yscale="log", ylim=(10.0**low, 10.0**high))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _mark_first(axes: Axes) -> None:
    style: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center", "backgroundcolor": "white"}
    axes.text(0, 0.5, "no inverse", transform=axes.get_xaxis_transform(), color="grey", **style)


def _name(axes: Axes, title: str, y: str) -> None:
    axes.set_title(title, pad=19)
    axes.set_ylabel(y)
