"""Figure of `targetprop.claims.normalisation`: sizes by layer, all networks, and ill-conditioned layers."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from targetprop.claims.claim import Claim
from targetprop.claims.figures.style import COLOURS, PREDICTION, label, legend, new_figure

_LOOKS = {"normalised": (COLOURS[0], "o"), "not normalised": (COLOURS[1], "s")}


def draw(claim: Claim) -> Figure:
    """Draw the figure."""
    figure, (layers, networks, sweep) = new_figure(3)
    _draw_layers(layers, claim.data["example"])
    _draw_networks(networks, claim.data["relative"])
    _draw_sweep(sweep, claim.data["sweep"])
    return figure


def _draw_layers(axes: Axes, sizes: dict[str, list[float]]) -> None:
    numbers = range(1, len(sizes["normalised"]) + 1)
    for kind, (colour, marker) in _LOOKS.items():
        axes.plot(numbers, sizes[kind], color=colour, marker=marker, label=kind)
    axes.plot(numbers, sizes["projection"], **{**PREDICTION, "linestyle": ":"}, label="predicted: projected gradient")
    axes.plot(numbers, sizes["back-propagation"], **PREDICTION, label="back-propagation")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label(axes, "One network: change of activations", "layer", "‖Δ‖ / β, RMS over samples")
    legend(axes)


def _draw_networks(axes: Axes, sizes: dict[str, list[float]]) -> None:
    expected = sizes["back-propagation"]
    for kind, (colour, marker) in _LOOKS.items():
        axes.plot(expected, sizes[kind], marker, color=colour, markersize=3.5, alpha=0.7, label=kind)
    ends = [min(expected), max(expected)]
    axes.plot(ends, ends, **PREDICTION, label="equal")
    axes.set_xscale("log")
    axes.set_yscale("log")
    title, size = "All networks: change of weights, a point per layer", "‖∇‖ / mean over layers"
    label(axes, title, f"{size}, back-propagation", f"{size}, targets")
    legend(axes, columns=3)


def _draw_sweep(axes: Axes, sweep: dict[str, list[dict[str, float]]]) -> None:
    for colour, marker, (rule, rows) in zip(COLOURS, "os^D", sweep.items(), strict=False):
        line = "-" if rule == "exact" else "-."
        spreads, ranks = ([row[key] for row in rows] for key in ("spread", "rank"))
        axes.plot(spreads, ranks, line, color=colour, marker=marker, label=rule)
    axes.axhline(1.0, **PREDICTION, label="same order as back-propagation")
    axes.set_xscale("log")
    axes.set_ylim(top=1.1)
    title, spread = (
        "Ill-conditioned layers, exact and damped inverses",
        "largest / smallest singular value of each layer",
    )
    label(axes, title, spread, "rank correlation of ‖∇‖ over layers")
    legend(axes, columns=3)
