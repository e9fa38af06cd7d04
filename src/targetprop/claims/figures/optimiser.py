"""Training loss of back-propagation and of targets: by damping, by update rule, and at the end."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from targetprop.claims.claim import Claim
from targetprop.report.style import PREDICTION, label, legend, look, new_figure

_MARKERS = "osD^v"
_HIGHEST = 5.0  # nats; a guess has ln 10
_LOSS = "training loss (nats per digit)"
Losses = list[float | None]


def draw(claim: Claim) -> Figure:
    """Draw the curves of the best-tuned contenders, and their final losses against the damping."""
    data = claim.data
    figure, (by_damping, by_rule, final) = new_figure(3, height=3.5)
    gradient = data["targets"]["gradient"]
    _curves(by_damping, data, {f"λ = {name}": losses for name, losses in gradient.items()})
    label(by_damping, "Gradient update, targets by λ", "training steps", _LOSS)
    champions: dict[str, Losses] = {}
    for rule, runs in data["targets"].items():
        ended = [name for name in runs if runs[name][-1] is not None] or list(runs)
        name = min(ended, key=lambda n, runs=runs: _plot(runs[n])[-1])
        champions[f"{rule}, λ = {name}"] = runs[name]
    _curves(by_rule, data, champions)
    label(by_rule, "Update rules, each at its best λ", "training steps", _LOSS)
    _finals(final, data)
    label(final, f"After {data['steps'][-1]} steps", "damping λ (∞: transposes; 0: inverses)", _LOSS)
    for axes in (by_damping, by_rule, final):
        legend(axes)
    return figure


def _curves(axes: Axes, data: dict[str, Any], runs: dict[str, Losses]) -> None:
    for i, (name, losses) in enumerate(runs.items()):
        axes.plot(data["steps"], _plot(losses), label=name, markersize=3.5, linewidth=1.3, **look(i, _MARKERS))
    axes.plot(data["steps"], _plot(data["backprop"]["adam"]), **PREDICTION, label="back-propagation, Adam")
    grey = {**PREDICTION, "color": "0.55"}
    axes.plot(data["steps"], _plot(data["backprop"]["sgd"]), **grey, label="back-propagation, SGD")
    _frame(axes)


def _finals(axes: Axes, data: dict[str, Any]) -> None:
    for i, (rule, runs) in enumerate(data["targets"].items()):
        ends = [_plot(runs[name])[-1] for name in data["dampings"]]
        axes.plot(range(len(ends)), ends, label=rule, linewidth=1.3, **look(i, _MARKERS))
    axes.axhline(_plot(data["backprop"]["adam"])[-1], **PREDICTION, label="back-propagation, Adam")
    axes.set_xticks(range(len(data["dampings"])), data["dampings"])
    _frame(axes)


def _frame(axes: Axes) -> None:
    """Choose the scale; a run that explodes leaves the panel."""
    axes.set_yscale("log")
    values = [float(y) for line in axes.lines for y in np.asarray(line.get_ydata()) if y < _HIGHEST]
    low, high = min(values, default=0.1), max(values, default=1.0)
    axes.set_ylim(low / 1.3, high * 1.3)


def _plot(losses: Losses) -> list[float]:
    return [float("nan") if loss is None else loss for loss in losses]
