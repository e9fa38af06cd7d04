"""Figure of the claim "gauss-newton": distance from Gauss-Newton by inversion steps, and where layers shrink."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from targetprop.claims.claim import Claim
from targetprop.report.style import COLOURS, PREDICTION, label, look, new_figure

_LOWEST = 1e-20


def draw(claim: Claim) -> Figure:
    """Draw the claim."""
    figure, (activations, weights, shrinking) = new_figure(3, height=3.3)
    _by_steps(activations, claim.data, "activations")
    x, y = "inversion steps K", "1 − cosine, largest of the samples"
    label(activations, "Changes of activations, tanh network", x, y)
    _by_steps(weights, claim.data, "weights")
    hidden = len(claim.data["activations"][0])
    for layer, column in enumerate(list(zip(*claim.data["weights curvlinops"], strict=True))[:hidden]):
        weights.plot(claim.data["steps"], column, "k+", markersize=10, label="_" if layer else "curvlinops")
    weights.legend(loc="lower left")
    label(weights, "Changes of weights, one sample", x, y)
    _by_layer(shrinking, claim.data["shrinking"])
    label(shrinking, "Where layers shrink", "layer, from the input", "cosine to Gauss-Newton")
    return figure


def _by_steps(axes: Axes, data: dict[str, Any], what: str) -> None:
    layers = range(len(data["activations"][0]))
    for layer in layers:
        axes.plot(data["steps"], [row[layer] for row in data[f"{what} predicted"]], **PREDICTION)
    for layer in layers:
        values = [row[layer] for row in data[what]]
        axes.plot(data["steps"], values, linestyle="", label=f"layer {layer + 1}", **look(layer))
    axes.plot([], [], **PREDICTION, label="predicted from\nsingular values")
    axes.set_xscale("log", base=2)
    axes.set(yscale="log", ylim=(_LOWEST, 10))
    where: dict[str, Any] = {"xycoords": "axes fraction", "ha": "right", "va": "top", "size": 8.5}
    axes.annotate("flat parts: curvature (∝ β²), rounding", (0.98, 0.97), **where)
    axes.set_xticks(data["steps"], [str(k) for k in data["steps"]])
    axes.legend(loc="lower left")


def _by_layer(axes: Axes, data: dict[str, list[float]]) -> None:
    layers = list(range(1, len(data["measured"]) + 1))
    style: dict[str, Any] = {"markersize": 9, "fillstyle": "none", "color": COLOURS[1]}
    axes.plot(layers, data["composite"], "s", label="composite map, transposes", **style)
    axes.plot(layers, data["measured"], "o", color=COLOURS[0], label="layer by layer, pseudo-inverses")
    axes.plot(layers, data["predicted"], **PREDICTION, label="product of pseudo-inverses")
    axes.set_xticks(layers)
    axes.set_ylim(0, 1.08)
    axes.legend(loc="lower right")
