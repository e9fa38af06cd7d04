"""Figure of `targetprop.claims.bridge`: gains of learned decoders, and angles of updates to both ends as heat maps."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke

from targetprop.claims.claim import Claim
from targetprop.report.style import PREDICTION, label, legend, look, new_figure


def draw(claim: Claim) -> Figure:
    """Draw the figure."""
    figure, (gains, backprop, newton) = new_figure(3, height=3.9)
    _draw_gains(gains, claim.data["learned"])
    grid = claim.data["grid"]
    _draw_angles(backprop, grid, "backprop", "Gradient update: angle to back-propagation")
    _draw_angles(newton, grid, "newton", "Delta rule: angle to block-diagonal Gauss-Newton")
    return figure


def _draw_gains(axes: Axes, pairs: list[dict[str, Any]]) -> None:
    singular = [value for pair in pairs for value in pair["singular"]]
    line = np.geomspace(min(singular) / 1.1, max(singular) * 1.1, 100)
    for i, pair in enumerate(pairs):
        style, name = {**look(i), "linestyle": "", "markersize": 5, "alpha": 0.75}, f"(w, λ) = {pair['name']}"
        axes.plot(pair["singular"], pair["gains"], label=name, **style)
        axes.plot(line, line / (pair["w"] * line**2 + pair["damping"]), **PREDICTION)
    axes.plot([], [], **PREDICTION, label="closed form σ / (wσ² + λ)")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    title, gain = "Learned decoders, on their closed form", r"gain $v^\mathsf{T} J_g u$ of the decoder"
    label(axes, title, "singular value σ of the layer, with vectors u and v", gain)
    legend(axes)


def _draw_angles(axes: Axes, grid: dict[str, Any], kind: str, title: str) -> None:
    angles = np.array(grid[kind])
    top = 10 * np.ceil(angles.max() / 10)
    image = axes.imshow(angles, origin="lower", aspect="auto", cmap="cividis", vmin=0, vmax=top)
    dampings, steps = np.log(grid["dampings"]), np.log(grid["steps"])
    shown = (steps >= dampings[0]) & (steps <= dampings[-1])
    columns, rows = np.interp(steps, dampings, np.arange(len(dampings))), np.arange(len(steps))
    halo, name = Stroke(linewidth=3, foreground="white"), "λ = K; for K ≫ 1, the angle depends on λ / K alone"
    axes.plot(columns[shown], rows[shown], **PREDICTION, path_effects=[halo, Normal()], label=name)
    for (row, column), value in np.ndenumerate(angles):
        text, light = f"{value:.0f}" if value >= 9.5 else f"{value:.1f}", value > 0.55 * top
        edge = Stroke(linewidth=2, foreground=image.to_rgba(value))
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="black" if light else "white",
                  path_effects=[edge, Normal()])  # fmt: skip
    axes.set_xticks(range(len(dampings)), [f"$10^{{{np.log10(damping):g}}}$" for damping in grid["dampings"]])
    axes.set_yticks(rows, [str(k) for k in grid["steps"]])
    axes.grid(False)
    axes.figure.colorbar(image, ax=axes, label="angle (degrees)", fraction=0.05, pad=0.02)
    label(axes, title, "damping λ, in units of the mean diagonal of J Jᵀ", "steps K")
    legend(axes)
