"""What several processes know of one step, or keep of one engine, put together."""

from collections.abc import Collection, Iterator
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from targetprop.forward import Record
from targetprop.inversion import Outcome
from targetprop.placement import Places
from targetprop.precision import widened
from targetprop.step_report import root_mean_square


def gather_outcomes(outcomes: dict[str, Outcome], record: Record) -> dict[str, Outcome]:
    """Put the outcomes of all samples and all layers together.

    Args:
        outcomes: this process' measured ones.
        record: the forward pass.

    Returns:
        Everybody's, by layer name in the order of `outcomes`: from the top down.
    """
    found = {name: _whole(outcome, record) for name, outcome in outcomes.items()}
    if record.places.alone or "all" in found:
        return found
    names = [layer.layer.name for layer in record.layers[:0:-1]]
    like = widened(record.output)
    table = torch.zeros(len(names), len(fields(Outcome)), record.share.total, dtype=torch.double, device=like.device)
    for row, name in zip(table, names, strict=True):
        if name in found:
            values = [getattr(found[name], part.name) for part in fields(Outcome)]
            row.copy_(torch.stack([torch.full_like(row[0], torch.nan) if v is None else v.double() for v in values]))
    record.places.sum_([table])
    return {
        name: Outcome(status.long(), steps.long(), forward.to(like.dtype), inverse.to(like.dtype))
        for name, (status, steps, forward, inverse) in zip(names, table, strict=True)
    }


def _whole(outcome: Outcome, record: Record) -> Outcome:
    if record.share.ranks.alone:
        return outcome
    parts = {f.name: getattr(outcome, f.name) for f in fields(Outcome)}
    kept = {field: values for field, values in parts.items() if values is not None}
    return Outcome(**parts | dict(zip(kept, record.share.whole(list(kept.values())), strict=True)))


def gather_norms(record: Record, deltas: list[Tensor]) -> dict[str, Tensor]:
    """Measure the changes of all layers.

    Args:
        record: the forward pass.
        deltas: changes of this process' layers.

    Returns:
        Their root mean squares by layer name, and the output's once more as "all".
    """
    found = [widened(record.output).new_zeros(()) for _ in record.layers]
    for index, delta in zip(record.own, deltas, strict=True):
        found[index] = root_mean_square(delta, record.share)
    record.places.sum_(found)
    named = {layer.layer.name: norm for layer, norm in zip(record.layers, found, strict=True)}
    return {**named, "all": found[-1]}


def gather_optimizer(
    optimizer: torch.optim.Optimizer | None, own: Collection[nn.Parameter], places: Places
) -> dict[str, Any] | None:
    """Put the state of an optimiser together, which each process holds for its own layers.

    Args:
        optimizer: the optimiser, over the same parameters on every process; None if there is none.
        own: the parameters of this process' layers.
        places: the processes.

    Returns:
        What ``state_dict`` would return if one process did all the work.
    """
    if optimizer is None:
        return None
    state = optimizer.state_dict()
    if places.alone:
        return state
    parameters, mine = [p for group in optimizer.param_groups for p in group["params"]], {id(p) for p in own}
    kept = {place: values for place, values in state["state"].items() if id(parameters[place]) in mine}
    whole: dict[int, Any] = {}
    for theirs in cast(list[dict[int, Any]], places.collect(_move(kept, "cpu"))):
        whole |= theirs
    return state | {"state": {place: _move(whole[place], parameters[place].device) for place in sorted(whole)}}


def _move(values: Any, device: torch.device | str) -> Any:
    if isinstance(values, Tensor):
        return values.to(device)
    return {key: _move(value, device) for key, value in values.items()} if isinstance(values, dict) else values


def layer_states(states: nn.ModuleDict, name: str) -> Iterator[nn.Module]:
    """Find what an update keeps of one layer.

    Args:
        states: the update's state.
        name: the layer's name.

    Yields:
        The module, if there is one.
    """
    key = name.replace(".", "/")
    if key in states:
        yield states[key]
