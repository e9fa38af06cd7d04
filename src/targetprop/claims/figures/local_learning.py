"""Contraction factor and relative residual against steps, per objective: decoders alone, and everything together."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from targetprop.claims.claim import Claim
from targetprop.report.style import PREDICTION, label, look, new_figure

_EXACT = "exact damped inverse"
_TITLES = {"alone": "Decoders alone", "together": "Everything together"}


def draw(claim: Claim) -> Figure:
    """Draw the worst layer's contraction factor and residual at every checkpoint."""
    figure, axes = new_figure(4, height=2.6)
    panels = [(phase, key) for phase in _TITLES for key in ("factor", "last")]
    for axis, (phase, key) in zip(axes, panels, strict=True):
        _curves(axis, claim.data, phase, key)
        axis.axhline(1.0, **PREDICTION, label="1: no convergence, no inversion")
        if key == "factor":
            label(axis, f"{_TITLES[phase]}: contraction factor", "training steps", "‖J(f∘g) − I‖, median")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
        else:
            name = f"residual after {claim.data['iterations']} iterations"
            label(axis, f"{_TITLES[phase]}: {name}", "training steps", "‖t − f(x)‖ / ‖t − y₀‖, median")
    style: dict[str, Any] = {"loc": "outside lower center", "ncols": 2, "fontsize": 8.5}
    figure.legend(*axes[2].get_legend_handles_labels(), title="worst layer, held-out samples", **style)
    return figure


def _curves(axes: Axes, data: dict[str, Any], phase: str, key: str) -> None:
    for i, (name, series) in enumerate(data[phase].items()):
        values = [max(layers) for layers in series[key]]
        style: dict[str, Any] = {"color": "0.35", "linestyle": ":"} if name == _EXACT else look(i, "osD^vPX")
        axes.plot(data["steps"][: len(values)], values, label=name, markersize=4, linewidth=1.4, **style)
    axes.set_yscale("log")
    if phase == "together":
        axes.axvspan(data["steps"][-2], data["steps"][-1], color="0.9", zorder=0, label="weights at rest")
