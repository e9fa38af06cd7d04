"""Figure of `targetprop.claims.normalisation`: sizes by layer, all networks, and ill-conditioned layers."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from targetprop.claims.claim import Claim
from targetprop.report.style import PREDICTION, label, legend, look, new_figure

_KINDS = ("normalised", "not normalised")


def draw(claim: Claim) -> Figure:
    """Draw the figure."""
    figure, (layers, networks, sweep) = new_figure(3)
    _draw_layers(layers, claim.data["example"])
    _draw_networks(networks, claim.data["relative"])
    _draw_sweep(sweep, claim.data["sweep"])
    return figure


def _draw_layers(axes: Axes, sizes: dict[str, list[float]]) -> None:
    numbers = range(1, len(sizes["normalised"]) + 1)
    for i, kind in enumerate(_KINDS):
        axes.plot(numbers, sizes[kind], **look(i), label=kind)
    axes.plot(numbers, sizes["projection"], **{**PREDICTION, "linestyle": ":"}, label="predicted: projected gradient")
    axes.plot(numbers, sizes["back-propagation"], **PREDICTION, label="back-propagation")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label(axes, "One network: change of activations", "layer", "‖Δ‖ / β, RMS over samples")
    legend(axes)


def _draw_networks(axes: Axes, sizes: dict[str, list[float]]) -> None:
    expected = sizes["back-propagation"]
    for i, kind in enumerate(_KINDS):
        axes.plot(expected, sizes[kind], **look(i), linestyle="", markersize=3.5, alpha=0.7, label=kind)
    ends = [min(expected), max(expected)]
    axes.plot(ends, ends, **PREDICTION, label="equal")
    axes.set(xscale="log", yscale="log")
    title, size = "All networks: change of weights, a point per layer", "‖∇‖ / mean over layers"
    label(axes, title, f"{size}, back-propagation", f"{size}, targets")
    legend(axes, columns=3)


def _draw_sweep(axes: Axes, sweep: dict[str, list[dict[str, float]]]) -> None:
    for i, (rule, rows) in enumerate(sweep.items()):
        spreads, ranks = ([row[key] for row in rows] for key in ("spread", "rank"))
        axes.plot(spreads, ranks, "-" if rule == "exact" else "-.", **look(i), label=rule)
    axes.axhline(1.0, **PREDICTION, label="same order as back-propagation")
    axes.set_xscale("log")
    axes.set_ylim(top=1.1)
    title, ranks = "Ill-conditioned layers, exact and damped inverses", "rank correlation of ‖∇‖ over layers"
    label(axes, title, "largest / smallest singular value of each layer", ranks)
    legend(axes, columns=3)
