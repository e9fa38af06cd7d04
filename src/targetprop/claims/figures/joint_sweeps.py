"""Figure of `targetprop.claims.joint_sweeps`: the error by layer and by depth, and the factor per sweep."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from targetprop.claims.claim import Claim
from targetprop.report.style import PREDICTION, label, legend, look, new_figure


def draw(claim: Claim) -> Figure:
    """Draw the figure, each run by its slowest sample."""
    runs = claim.data["runs"]
    quick = [run for run in runs if run["damping"] == runs[0]["damping"]]
    figure, (layers, depths, factors) = new_figure(3, height=3.6)
    _draw_layers(layers, quick[-1])
    _draw_depths(depths, quick)
    _draw_factors(factors, [run for run in runs if run["layers"] == runs[-1]["layers"]])
    return figure


def _draw_layers(axes: Axes, run: dict[str, Any]) -> None:
    count = len(run["by layer"])
    for i, index in enumerate(dict.fromkeys((0, count // 2, count - 1))):
        errors, reached = run["by layer"][index], count - index
        name = f"layer {index + 1}, still until sweep {reached}"
        axes.plot(errors, **{**look(i), "marker": ""}, label=name)
        axes.plot([reached - 1], [errors[reached - 1]], **look(i), linestyle="", ms=5)
    axes.plot(run["bound"], **PREDICTION, label="bound of layer 1")
    axes.set_yscale("log")
    title = f"Joint sweeps, {run['layers']} layers, λ = {run['damping']:g}"
    label(axes, title, "sweep k", "‖u_l − u*_l‖ / ‖u*_l‖")
    legend(axes)


def _draw_depths(axes: Axes, runs: list[dict[str, Any]]) -> None:
    for i, run in enumerate(runs):
        for order, line in (("joint", "-"), ("top-down", ":")):
            shown = run[order]
            name = f"{run['layers']} layers, {order}"
            axes.plot(shown, **{**look(i), "marker": ""}, linestyle=line, linewidth=1.8, label=name)
        end = len(run["joint"]) - 1
        rate = [run["joint"][end] * run["rho"] ** (k - end) for k in range(end // 2, end + 1)]
        axes.plot(range(end // 2, end + 1), rate, **PREDICTION, label="ρᵏ, ρ at the fixed point" if not i else None)
    axes.set(yscale="log")
    label(axes, f"All layers together, λ = {runs[0]['damping']:g}", "sweep k", "‖u − u*‖ / ‖u*‖")
    legend(axes)


def _draw_factors(axes: Axes, runs: list[dict[str, Any]]) -> None:
    for i, run in enumerate(runs):
        shown = run["joint"]
        ratios = [b / a / run["rho"] for a, b in zip(shown, shown[1:], strict=False)]
        axes.plot(range(1, len(shown)), ratios, **{**look(i), "marker": ""}, label=f"λ = {run['damping']:g}")
    axes.axhline(1.0, **PREDICTION, label="ρ at the fixed point")
    axes.set_xscale("log")
    label(axes, f"Factor per sweep, {runs[0]['layers']} layers, joint", "sweep k", "factor / ρ")
    legend(axes)
