r"""Sweeps over all layers at once reach what inverting layer by layer reaches, after ``L − 1`` sweeps at rate ``ρ``.

Joint sweeps, ``u_l ← u_l + g_{l+1}(ĥ_{l+1}) − g_{l+1}(f_{l+1}(ĥ_l))`` for all ``l``, are the paper's (Bengio 2020,
arXiv:2007.15139). With the fixed point ``u*`` and ``e_l = ‖u_l − u*_l‖``,

    ``e_l ← ρ_l e_l + γ_{l+1} e_{l+1}``,  ``ρ_l = Lip(g_{l+1}∘f_{l+1} − id)``,  ``γ_l = Lip(g_l)``

is a triangular system: the error of the bottom after ``k`` sweeps is at most ``ρᵏ`` times a polynomial in ``k`` of
degree ``L − 2``, and the factor per sweep tends to the largest eigenvalue of all ``I − J_g J_f`` at the fixed point.
Until sweep ``L − l`` layer ``l`` has not moved. Sweeps from the top down, each layer after the one above, do the same
``L − 1 − l`` sweeps earlier in layer ``l``; their first gives the difference targets.

Layers are tanh layers of full rank, decoders are `targetprop.WeightInverse`, and the network can reach its targets.
That layers are invertible is the paper's assumption.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import Any

import torch
from torch import Tensor

from targetprop.claims.altered import Alter, unaltered
from targetprop.claims.claim import Claim, Number, Table, format_number
from targetprop.claims.measure.sweeps import (
    Order,
    Sweeps,
    Task,
    apart,
    contraction_factors,
    difference_targets,
    pose,
    sweep,
    sweeps_to,
)
from targetprop.inversion import sample_norm

ORDERS: tuple[Order, Order] = ("joint", "top-down")
_WIDTH = 8
_FLOOR = 1e-10  # of the first error; farther down, rounding and the end of the layer-wise iteration are seen
_END, _REACHED = 1e-7, 1e-6
_DRAWN = 60  # sweeps that are kept layer by layer
_ROUNDING = 1 + 1e-6


@dataclass(frozen=True, eq=False)
class _Run:
    """A network and a damping, measured."""

    layers: int
    damping: float
    task: Task
    rho: Tensor  # ``ρ_l``, shape ``(L − 1, n)``
    slowest: Tensor  # ``ρ`` at the fixed point, shape ``(n,)``
    sweeps: dict[Order, Sweeps]

    def relative(self, order: Order) -> Tensor:
        """Divide the factor per sweep at the last sweep above the floor by ``ρ`` at the fixed point, by sample."""
        found = self.sweeps[order]
        return found.factor(found.last(_FLOOR)) / self.slowest

    def left(self, order: Order, sweeps: int) -> float:
        """The largest error after some sweeps, of all layers together, as a share of the first."""
        whole = self.sweeps[order].whole
        return float((whole[min(sweeps, len(whole) - 1)] / whole[0]).max())


def joint_sweeps(
    seed: int = 0,
    *,
    depths: Sequence[int] = (2, 4, 8),
    dampings: Sequence[float] = (0.3, 3.0),
    samples: int = 8,
    alter: Alter = unaltered,
) -> Claim:
    """Measure both kinds of sweeps against the fixed point that inverting layer by layer has."""
    runs = [_measure(layers, damping, samples, seed, alter) for layers in depths for damping in dampings]
    deep = runs[-1]
    return Claim(
        name="joint-sweeps",
        statement="Joint sweeps reach the layer-wise fixed point, at rate ρ, after L − 1 sweeps",
        prediction="e_l ← ρ_l e_l + γ_{l+1} e_{l+1}: after k sweeps, ρᵏ times a polynomial in k of degree L − 2;"
        " nothing at the bottom before sweep L − 1",
        measured=_measured(runs),
        stops=_stops(deep),
        limits=(
            Number(f"{_name(deep)}, joint sweeps to an error of {format_number(_REACHED)}", (_to(deep, "joint"),)),
            Number(f"{_name(deep)}, sweeps from the top down to it", (_to(deep, "top-down"),)),
            Number(f"{_name(deep)}, error left by two sweeps from the top down", (deep.left("top-down", 2),)),
            Number(f"{_name(deep)}, largest error on the way / first error", (_hump(deep),)),
        ),
        tables=(_table(runs),),
        data={"runs": [_series(run) for run in runs]},
        seeds=(seed,),
    )


def _measure(layers: int, damping: float, samples: int, seed: int, alter: Alter) -> _Run:
    task = pose(layers, _WIDTH, damping, samples, seed, alter)
    rho, slowest = contraction_factors(task), task.slowest()
    worst = min(float(slowest.max()), 0.98)
    count = ceil(log(_END) / log(worst)) + 3 * layers
    return _Run(layers, damping, task, rho, slowest, {order: sweep(task, order, count, rho) for order in ORDERS})


def _measured(runs: list[_Run]) -> tuple[Number, ...]:
    bounds = [run.sweeps[order].against_bound(_FLOOR) for run in runs for order in ORDERS]
    factors = torch.cat([run.relative(order) for run in runs for order in ORDERS])
    early = max(run.sweeps["joint"].early(run.task.start) for run in runs)
    arrived = min(run.sweeps["joint"].arrived(run.task.start) for run in runs)
    ends = max(run.left(order, 10**6) for run in runs for order in ORDERS)
    shift = max(apart(run.sweeps["joint"], run.sweeps["top-down"], run.task.start) for run in runs)
    return (
        Number("largest distance from the layer-wise targets at the end", (ends,), at_most=_REACHED),
        Number("change of layer l before joint sweep L − l, relative", (early,), at_most=1e-12),
        Number("change of layer 1 at joint sweep L − 1, relative, smallest", (arrived,), at_least=1e-9),
        Number("largest ρ", (max(float(run.rho.max()) for run in runs),), at_most=0.9999),
        Number("largest error / bound of the triangular system", (max(bounds),), at_most=_ROUNDING),
        Number("last factor per sweep / ρ, smallest", (float(factors.min()),), at_least=0.95),
        Number("last factor per sweep / ρ, largest", (float(factors.max()),), at_most=1.05),
        Number("first top-down sweep, distance from difference targets", (max(map(_first, runs)),), at_most=1e-8),
        Number("top-down sweep k, distance from joint sweep k + L − 1 − l", (shift,), at_most=1e-8),
    )


def _first(run: _Run) -> float:
    pairs = zip(run.sweeps["top-down"].iterates[1], difference_targets(run.task), strict=True)
    return max(float((sample_norm(a - b) / sample_norm(b)).max()) for a, b in pairs)


def _name(run: _Run) -> str:
    return f"{run.layers} layers, λ = {run.damping:g}"


def _to(run: _Run, order: Order) -> float:
    found = sweeps_to(run.sweeps[order], _REACHED)
    return float("nan") if found is None else float(found)


def _hump(run: _Run) -> float:
    whole = run.sweeps["joint"].whole
    return float((whole / whole[0]).max())


def _stops(run: _Run) -> str:
    to = {order: format_number(_to(run, order)) for order in ORDERS}
    return (
        f"A rate near 1 is slow: {_name(run)}, have ρ = {float(run.slowest.max()):.3f} at the fixed point and take"
        f" {to['joint']} joint sweeps to an error of {format_number(_REACHED)}, {to['top-down']} from the top down. Two"
        f" from the top down, as in the method iterated, leave {run.left('top-down', 2):.0%}. A target that tanh cannot"
        " reach has no fixed point."
    )


def _table(runs: list[_Run]) -> Table:
    columns = (
        "layers", "λ", "ρ, largest bound", "ρ at the fixed point, largest", "last factor per sweep",
        "error after L − 1 joint sweeps", f"joint sweeps to {format_number(_REACHED)}", "top-down sweeps to it",
        "error after 2 top-down sweeps",
    )  # fmt: skip
    rows = []
    for run in runs:
        worst = int(run.slowest.argmax())
        factor = float((run.relative("joint") * run.slowest)[worst])
        rows.append(
            (run.layers, run.damping, float(run.rho.max()), float(run.slowest[worst]), factor)
            + (run.left("joint", run.layers - 1), _to(run, "joint"), _to(run, "top-down"), run.left("top-down", 2))
        )
    return Table("Rate and sweeps, the slowest sample", columns, tuple(rows))


def _series(run: _Run) -> dict[str, Any]:
    """Keep what the sample with the largest ``ρ`` did, by sweep."""
    worst = int(run.slowest.argmax())
    kept: dict[str, Any] = {"layers": run.layers, "damping": run.damping, "rho": float(run.slowest[worst])}
    for order, found in run.sweeps.items():
        whole = found.whole[:, worst]
        kept[order] = _short(whole[: int(found.last(_END)[worst]) + 1] / whole[0])
    joint = run.sweeps["joint"]
    own = joint.errors[:_DRAWN, :, worst]
    kept["by layer"] = [_short(errors / errors[0]) for errors in own.T]
    kept["bound"] = _short(joint.bound[:_DRAWN, 0, worst] / own[0, 0])
    return kept


def _short(values: Tensor) -> list[float]:
    """Write five digits, as many as a figure shows."""
    return [float(f"{value:.5g}") for value in values.tolist()]
