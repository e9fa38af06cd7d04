"""One step, from a batch to ``.grad``: stages return what they found, and only what passes a stop changes anything."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.decoders import Bank
from targetprop.finite import not_finite
from targetprop.layers import Chain, run_forward
from targetprop.methods import Method
from targetprop.output_target import Loss
from targetprop.peers import Peers
from targetprop.step_report import StepReport, report_changes
from targetprop.targets import propagate


@dataclass(frozen=True, eq=False)
class Parts:
    """What a step works with.

    Attributes:
        method: the recipe.
        chain: the layers.
        loss: the user's loss.
        bank: the decoders.
        decoder_optimizer: over their parameters; None if there are none to be trained by one.
        generators: source of the noise of each layer, by name.
        update_state: what the update remembers.
        peers: the processes that take the step together.
    """

    method: Method
    chain: Chain
    loss: Loss
    bank: Bank
    decoder_optimizer: torch.optim.Optimizer | None
    generators: dict[str, torch.Generator]
    update_state: nn.ModuleDict
    peers: Peers


def take_step(parts: Parts, x: Tensor, y: Any, *, measure: bool) -> StepReport:
    """Take a step if all its numbers are finite; otherwise change nothing and say why.

    Args:
        parts: what the step works with.
        x: input, shape ``(n, …)``.
        y: what the loss compares the output with.
        measure: fill in the norms and the residuals of every inversion, also where the step does not need them.

    Returns:
        The report.
    """
    method, bank, peers = parts.method, parts.bank, parts.peers
    record = run_forward(parts.chain, x, peers, keep_inner=method.update.needs_inner)
    change = method.output_target(record.output, y, parts.loss, record.batch)
    draws = {name: generator.get_state() for name, generator in parts.generators.items()}
    learned = method.decoder.propose(bank, record, parts.decoder_optimizer, parts.generators)
    report = StepReport(change.loss, record.output)
    if problem := not_finite([*record.looks(x), *change.looks(), *learned.looks], peers):
        restore(parts.generators, draws)
        return replace(report, skipped=problem)
    learned.apply()
    with torch.no_grad():
        targets = propagate(record, bank, change.delta, method.inversion, method.propagation, peers, measure=measure)
        deltas = method.influence(targets.deltas, change.delta)
        taken = report_changes(report, record, learned.loss, targets, deltas, change.delta, measure=measure)
        taken = peers.whole_report(taken, record.batch, measure=measure)
    gradients = method.update.gradients(record, deltas, change.scale, parts.update_state)
    peers.sum_gradients(list(gradients.values.values()))
    if problem := not_finite(gradients.looks(record, deltas), peers):
        return replace(report, skipped=problem)
    gradients.add_to_grad()
    return taken


def restore(generators: Mapping[str, torch.Generator], draws: Mapping[str, Tensor]) -> None:
    """Put random numbers back where they were."""
    for name, state in draws.items():
        generators[name].set_state(state)
