"""One step, from a batch to ``.grad``: stages return what they found, and only what passes a stop changes anything."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.decoders import Bank
from targetprop.drawn_targets import LABELS, Drawn, draw_targets
from targetprop.finite import BAD_TARGET, Look, not_finite
from targetprop.joint import Targets
from targetprop.layers import Network, Record, Reduction, Wanted
from targetprop.output_target import Loss, OutputChange
from targetprop.peers import Peers
from targetprop.recipe import Method
from targetprop.step_report import StepReport, report_changes
from targetprop.targets import propagate
from targetprop.updates import Common, Update, from_top


@dataclass(frozen=True, eq=False)
class Parts:
    """What a step works with.

    Attributes:
        method: the recipe.
        network: the layers.
        forward: runs the model on inputs, with labels if there are any, into a record of its layers.
        loss: the user's loss.
        reduction: whether that is a sum or a mean.
        bank: the decoders.
        decoder_optimizer: over their parameters; None if there are none to be trained by one.
        generators: source of the noise of each decoder, by name.
        update_state: what the update remembers.
        peers: the processes that take the step together.
    """

    method: Method
    network: Network
    forward: Callable[..., Record]
    loss: Loss
    reduction: Reduction
    bank: Bank
    decoder_optimizer: torch.optim.Optimizer | None
    generators: dict[str, torch.Generator]
    update_state: nn.ModuleDict
    peers: Peers


def take_step(parts: Parts, x: Any, y: Any, *, measure: bool) -> StepReport:
    """Take a step if all its numbers are finite; otherwise change nothing and say why.

    Args:
        parts: what the step works with.
        x: input, shape ``(n, …)``, or several of them.
        y: what the loss compares the output with.
        measure: fill in the norms and the residuals of every inversion, also where the step does not need them.

    Returns:
        The report.
    """
    method, peers = parts.method, parts.peers
    record = parts.forward(x, y, measure=measure)
    change = method.output_target(record.output, y, parts.loss, record.batch, record.loss, parts.reduction)
    decoder_loss, problem = learn(parts, record, [*record.looks(x), *change.looks()])
    report = StepReport(change.loss, record.output, skipped=problem)
    if problem:
        return report
    wanted = [method.update.wants(layer, parts.update_state) for layer in record.layers if record.connected]
    record = record.spent(wanted)
    drawn = find_drawn(parts, record, change, y)
    with torch.no_grad():
        targets = bring_down(parts, record, change, wanted, measure=measure)
        deltas = method.influence(targets.deltas, change.delta)
        taken = report_changes(report, record, decoder_loss, targets, deltas, change.delta, measure=measure)
        taken = peers.whole_report(taken, record.batch, measure=measure)
    seen = look_at_targets(method.update, record, deltas, targets, drawn.targets)
    layers = from_top(record, deltas, targets.pulled, drawn.targets)
    common = Common(record.batch, change.scale, drawn.excess, drawn.belief, drawn.labels)
    beside, derived = change.beside, record.derived
    del record, change, targets, deltas, drawn  # what a layer has used is freed before the next one's gradient is made
    if method.update.remembers and (problem := not_finite(seen, peers)):
        return replace(report, skipped=problem)
    gradients = method.update.gradients(layers, common, parts.update_state)
    gradients.note("loss", list(beside), list(beside.values()))
    gradients.settle(derived)
    peers.sum_gradients(list(gradients.values.values()))
    if problem := not_finite([*seen, *gradients.looks()], peers):
        return replace(report, skipped=problem)
    gradients.add_to_grad()
    return taken


def learn(parts: Parts, record: Record, looks: Iterable[Look]) -> tuple[Tensor | None, str | None]:
    """Let the decoders learn if all is finite; returns their loss before, if any, or why nothing was changed."""
    draws = {name: generator.get_state() for name, generator in parts.generators.items()}
    moved = partial(parts.method.update.moved, state=parts.update_state)
    learned = parts.method.decoder.propose(parts.bank, record, parts.decoder_optimizer, parts.generators, moved)
    if problem := not_finite([*looks, *learned.looks], parts.peers):
        for name, state in draws.items():
            parts.generators[name].set_state(state)
        return None, problem
    learned.apply()
    return learned.loss, None


def find_drawn(parts: Parts, record: Record, change: OutputChange, y: Any) -> Drawn:
    """Draw labels and bring them down, if the update wants them in this step."""
    update = parts.method.update
    if not update.draws:
        return Drawn()
    generator, state = parts.generators[LABELS], parts.update_state
    known, draw = update.belief(state), update.observes(state)
    return draw_targets(record, parts.bank, change, y, generator, parts.peers, known, draw=draw)


def bring_down(
    parts: Parts, record: Record, change: OutputChange, wanted: Sequence[Wanted], *, measure: bool
) -> Targets:
    """Bring the change of the output down, to every layer or to what the update reads in one backward pass."""
    method, delta = parts.method, change.delta
    if record.connected:
        delta = method.update.seed(delta, change.scale)
    return propagate(
        record, parts.bank, delta, method.inversion, method.propagation, parts.peers, measure=measure, wanted=wanted
    )


def look_at_targets(
    update: Update, record: Record, deltas: list[Tensor], targets: Targets, drawn: Targets | None
) -> list[Look]:
    """Look at the change of every layer, or at what came out of one backward pass, of each kind of target."""
    kinds = [targets] if drawn is None else [targets, drawn]
    if record.connected and not update.remembers:  # nothing but gradients, which are looked at in the end
        return []
    if record.connected:
        return [Look(BAD_TARGET, pulled.values, name) for kind in kinds for name, pulled in kind.pulled.items()]
    changes = [*deltas, *(() if drawn is None else drawn.deltas)]
    return [Look(BAD_TARGET, (delta,), layer.name) for layer, delta in zip(cycle(record.layers), changes, strict=False)]
