"""Figure of `targetprop.claims.convergence`: decay and bound, decay against ``ρ``, and where the premise fails."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from targetprop.claims.claim import Claim
from targetprop.report.style import PREDICTION, label, legend, look, new_figure

_SHARE = "samples that converge (%)"
_RULES = {"plain": "plain iteration", "half steps": "steps of α = 0.5", "Anderson": "Anderson mixing (5)"}


def draw(claim: Claim) -> Figure:
    """Draw the figure."""
    figure, axes = new_figure(4)
    _draw_decay(axes[0], claim.data["decays"])
    _draw_rates(axes[1], claim.data["decays"])
    kinks, damping = claim.data["kinks"], claim.data["damping"]
    _draw_shares(axes[2], kinks, kinks["slope"])
    label(axes[2], "Fails: kinks of f and g in different places", "slope of the leaky ReLU", _SHARE)
    _draw_shares(axes[3], damping, damping["damping"])
    label(axes[3], "Fails: inverse learned with noise, damping → 0", "damping λ (largest singular value 1)", _SHARE)
    for panel in axes[2:]:
        legend(panel)
    return figure


def _draw_decay(axes: Axes, decays: list[dict[str, Any]]) -> None:
    random, trained = ([d for d in decays if d["name"].startswith("digits") is digits] for digits in (False, True))
    widest = random[-1]["name"].split()[-1]
    chosen = [d for d in random if d["space"] == "input-space" and d["name"].endswith(widest)]
    for i, decay in enumerate((*chosen, *trained[::2])):  # of each trained network the output layer
        steps = range(len(decay["worst"]))
        seen = [k for k in steps if decay["worst"][k] > 1e-9]
        axes.plot(seen, [decay["worst"][k] for k in seen], **look(i), markevery=3, ms=4.5, label=decay["name"])
        axes.plot(steps, [decay["rho"] ** k for k in steps], **{**PREDICTION, "color": look(i)["color"]})
    axes.plot([], [], **PREDICTION, label="bound ρᵏ, same colour")
    axes.set(yscale="log", ylim=(1e-9, 3))
    label(axes, "The slowest sample never exceeds ρᵏ", "iteration k", "‖z_k − z*‖ / ‖z_0 − z*‖")
    legend(axes)


def _draw_rates(axes: Axes, decays: list[dict[str, Any]]) -> None:
    for i, group in enumerate(("leaky ReLU", "tanh", "ELU", "digits")):
        found = [d for d in decays if d["name"].startswith(group)]
        x = [d["rho"] for d in found for _ in d["rates"]]
        y = [rate for d in found for rate in d["rates"]]
        axes.plot(x, y, **look(i), linestyle="", ms=3.5, alpha=0.6, label=group)
    ends = [0.0, 1.05]
    axes.plot(ends, ends, **PREDICTION, label="bound: decay = ρ")
    axes.set(xlim=(min(d["rho"] for d in decays) - 0.05, 1.03), ylim=(0, 1.05))
    label(axes, "Every sample decays at least as fast as ρ", "ρ = Lip(D) on the ball visited", "decay per iteration")
    legend(axes, columns=3)


def _draw_shares(axes: Axes, shares: dict[str, Any], settings: list[float]) -> None:
    places = range(len(settings))
    for i, (rule, name) in enumerate(_RULES.items()):
        axes.plot(places, shares[rule], **look(i), label=name)
    axes.plot(places, shares["guaranteed"], **PREDICTION, label="guaranteed: ρ²⁰⁰ < 10⁻³ at x*")
    axes.set_xticks(places, [f"{value:g}" for value in settings])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    axes.set_ylim(-0.04, 1.06)
