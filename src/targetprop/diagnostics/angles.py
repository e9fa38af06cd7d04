r"""Angles between what a run does and what back-propagation and Gauss-Newton would do, layer by layer.

>>> import torch
>>> angle(torch.tensor([[1.0, 0.0], [2.0, 2.0]]), torch.tensor([[0.0, 3.0], [1.0, 1.0]]))
tensor([90.,  0.])
"""

from copy import deepcopy
from math import pi

import torch
from torch import Tensor

from targetprop.diagnostics.jacobians import activations, output_jacobians
from targetprop.drawn_targets import Drawn, draw_targets
from targetprop.engine import TargetPropagation
from targetprop.inversion import per_sample, sample_norm
from targetprop.layers import Record
from targetprop.output_target import OutputChange
from targetprop.peers import Peers
from targetprop.updates import Common, from_top

MOST_ENTRIES = 2**27  # of the output's Jacobians in all layers; beyond it, fewer samples are compared with Gauss-Newton
Directions = list[Tensor] | list[None]


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Measure the angle between two directions, sample by sample, accurate also where it is small.

    Args:
        a: shape ``(n, …)``.
        b: same shape.

    Returns:
        Degrees in [0, 180], shape ``(n,)``; NaN where one of them is zero.
    """
    a, b = a / per_sample(sample_norm(a), a), b / per_sample(sample_norm(b), b)
    return 2 * torch.atan2(sample_norm(a - b), sample_norm(a + b)) * (180 / pi)


def median(values: Tensor) -> float | None:
    """Take the median of those values that are numbers; None if there is none, infinite if more than half are."""
    ordered = values[~torch.isnan(values)].double().sort().values
    middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
    return float(middle.mean()) if len(ordered) else None


def backprop_directions(engine: TargetPropagation, record: Record, y: Tensor) -> tuple[Directions, list[list[Tensor]]]:
    """Compute ``−∂C/∂h_l`` and gradients by layer; None and nothing if autograd cannot differentiate the network."""
    values = activations(record)
    groups = [list(layer.layer.parameters()) for layer in record.layers]
    if not all(value.requires_grad for value in values):
        return [None] * len(groups), [[] for _ in groups]
    wanted = [*values[1:], *(p for group in groups for p in group)]
    found = list(torch.autograd.grad(engine.loss(values[-1], y), wanted, materialize_grads=True))
    directions, rest = [-g for g in found[: len(groups)]], iter(found[len(groups) :])
    return directions, [[next(rest) for _ in group] for group in groups]


def gauss_newton_directions(record: Record, delta: Tensor) -> Directions:
    """Compute ``J_{l→L}⁺ Δ_L`` by layer on what fits into `MOST_ENTRIES`; None where autograd cannot differentiate."""
    entries = delta[0].numel() * sum(layer.y[0].numel() for layer in record.layers)
    rows = max(1, min(len(delta), MOST_ENTRIES // entries))
    record, change = record.head(rows), delta[:rows].flatten(1).unsqueeze(2)
    if not all(value.requires_grad for value in activations(record)):
        return [None] * len(record.layers)
    jacobians = output_jacobians(record)
    return [(torch.linalg.pinv(j) @ change).view_as(r.h) for j, r in zip(jacobians, record.layers, strict=True)]


def update_gradients(
    engine: TargetPropagation, record: Record, deltas: list[Tensor], change: OutputChange, y: Tensor
) -> list[list[Tensor]]:
    """Let a copy of the run's update compute the gradients of every layer; the record is used up."""
    state, update = deepcopy(engine._parts.update_state), engine.method.update  # pyright: ignore[reportPrivateUsage]
    drawn = Drawn()
    if update.draws:
        source, draw = torch.Generator(record.output.device).manual_seed(0), update.observes(state)
        drawn = draw_targets(record, engine.bank, change, y, source, Peers(), update.belief(state), draw=draw)
    layers = from_top(record, deltas, {}, drawn.targets)
    common = Common(record.batch, change.scale, drawn.excess, labels=drawn.labels)
    found = update.gradients(layers, common, state).values
    return [[found.get(p, torch.zeros_like(p)) for p in layer.layer.parameters()] for layer in record.layers]
