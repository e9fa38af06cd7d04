"""Figure of the claim "differential": errors of targets against β, absolute and relative."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from targetprop.claims.claim import Claim
from targetprop.report.style import COLOURS, PREDICTION, label, new_figure

_PRECISIONS = (("float64", "o", 0), ("float32", "s", 1))
_ONCE = (("difference", "^", 2), ("direct", "D", 3))
_SIZE = "β, size of the output's change"


def draw(claim: Claim) -> Figure:
    """Draw the claim."""
    figure, (absolute, relative) = new_figure(2, height=3.6)
    _absolute(absolute, claim.data)
    label(absolute, "Error of the lowest layer's target", _SIZE, "‖Δ − βu‖, u = J⁻¹v")
    _relative(relative, claim.data)
    label(relative, "The same decoders, 10 % off, with and without iteration", _SIZE, "‖Δ − βu‖ / ‖βu‖")
    for axes in (absolute, relative):
        axes.set(xscale="log", yscale="log")
        axes.invert_xaxis()
    return figure


def _absolute(axes: Axes, data: dict[str, Any]) -> None:
    betas = data["betas"]
    axes.plot(betas, [data["curvature"] * b**2 for b in betas], **PREDICTION, label="predicted: curvature, slope 2")
    for name, _, colour in _PRECISIONS:
        floor = [min(data["floors"][name], data["size"] * b) for b in betas]
        axes.plot(betas, floor, color="black", linestyle=":", label="_" if colour else "predicted: rounding")
    for name, marker, colour in _PRECISIONS:
        style: dict[str, Any] = {"color": COLOURS[colour], "fillstyle": "none" if colour else "full", "label": name}
        size = 7.0 if colour else 4.5  # so that neither hides the other
        axes.plot(betas, data["errors"][name], marker, markersize=size, **style)
    axes.set_ylim(data["floors"]["float64"] / 1e3, 10 * max(data["errors"]["float64"]))
    axes.legend(loc="upper right")


def _relative(axes: Axes, data: dict[str, Any]) -> None:
    betas = data["betas"]
    floor = data["floors"]["float64"]
    iterated = [max(data["curvature"] * b**2, floor) / (b * data["size"]) for b in betas]
    axes.plot(betas, iterated, **PREDICTION, label="predicted")
    errors = [e / (b * data["size"]) for e, b in zip(data["errors"]["float64"], betas, strict=True)]
    axes.plot(betas, errors, "o", color=COLOURS[0], markersize=4.5, label="iterated, float64")
    for name, marker, colour in _ONCE:
        axes.plot(betas, data["relative predicted"][name], **PREDICTION)
        axes.plot(betas, data["relative"][name], marker, color=COLOURS[colour], markersize=4.5, label=name)
    axes.legend(loc="upper left")
