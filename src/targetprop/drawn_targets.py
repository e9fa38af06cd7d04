"""What labels drawn from the network's own belief ask of every layer: the output's ``s_L = ỹ − p``, brought down."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from targetprop.batch import Batch
from targetprop.belief import Belief, find_belief
from targetprop.decoders import Bank
from targetprop.inversion import Difference
from targetprop.joint import Targets
from targetprop.layers import Record, Wanted
from targetprop.output_target import OutputChange
from targetprop.peers import Peers
from targetprop.targets import propagate

LABELS = "drawn labels"  # the source of randomness


@dataclass(frozen=True, eq=False)
class Drawn:
    """What is known of the network's belief in one step.

    Attributes:
        excess: how far the loss is above the least of any output, in units of what is asked of the output, a scalar;
            None where nobody asked.
        targets: what they ask of every layer, ``s_l``; None where no labels were drawn.
        belief: the distribution, if it is known.
        labels: how many labels each sample has.
    """

    excess: Tensor | None = None
    targets: Targets | None = None
    belief: Belief | None = None
    labels: int = 1


@torch.no_grad()
def draw_targets(
    record: Record, bank: Bank, change: OutputChange, y: Any, generator: torch.Generator, peers: Peers,
    known: Belief | None, *, draw: bool,
) -> Drawn:  # fmt: skip
    """Find what the network believes, and draw labels from it.

    Args:
        record: the forward pass.
        bank: the decoders.
        change: what the loss asks of the output.
        y: labels.
        generator: source of randomness.
        peers: the processes that take the step together.
        known: what an earlier step found.
        draw: whether labels are to be drawn.

    Returns:
        The excess of the loss and the changes.

    Raises:
        ValueError: the loss is of no known distribution.
    """
    output, batch = record.output, record.batch
    belief = known or find_belief(output, y, change.gradient, batch)
    if belief is None:
        if float(change.loss) == 0 or not bool(change.gradient.any()):
            nothing = _bring_down(record, bank, torch.zeros_like(output), peers) if draw else None
            return Drawn(torch.zeros_like(change.loss), nothing)
        raise ValueError(
            "this update draws labels from what the network believes, and the loss is no cross-entropy of a softmax or"
            " of sigmoids, and no squared error; choose another update or method"
        )
    excess = belief.excess(output, change.gradient) / change.samples * _asked_by_loss(change, batch)
    batch.sum_([excess])
    labels = belief.labels(output, batch)
    if not draw:
        return Drawn(excess, None, belief, labels)
    return Drawn(excess, _bring_down(record, bank, belief.draw(output, batch, generator), peers), belief, labels)


def _bring_down(record: Record, bank: Bank, drawn: Tensor, peers: Peers) -> Targets:
    wanted = [Wanted(maps=True)] * len(record.layers)
    return propagate(record, bank, drawn, Difference(), "layerwise", peers, wanted=wanted, keep_graph=True)


def _asked_by_loss(change: OutputChange, batch: Batch) -> Tensor:
    """Measure ``|Δ_L|² / (β ⟨Δ_L, −∂C/∂h_L⟩)``: 1 of a gradient step, and what a target in other units has instead."""
    delta = change.delta.flatten()
    sums = torch.stack([delta @ delta, -(delta @ change.gradient.flatten().to(delta))])
    batch.sum_([sums])
    ratio = sums[0] * change.samples / (sums[1] * change.scale)
    return torch.where(sums[1] <= 0, 1.0, ratio)
