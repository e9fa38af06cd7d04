r"""From the output's target to every layer's: ``ĥ_L → ĥ_{L-1} → … → ĥ_1``.

* *layerwise*: each layer's target is inverted into the next one down;
* *joint*: all layers at once, ``ĥ_l ← ĥ_l + α (g_{l+1}(ĥ_{l+1}) − g_{l+1}(f_{l+1}(ĥ_l)))`` (Bengio 2020): the layers
  of a sweep do not wait for each other, and after ``L − 1`` sweeps the bottom has heard of the top;
* *composite*: ``F = f_L∘…∘f_{l+1}`` is inverted in one piece for every ``l``, which corrects errors that pile up.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from targetprop.decoders import Bank
from targetprop.forward import Record
from targetprop.inversion import Columns, Evaluation, InputSpace, Inversion, Map, Outcome, Problem, iterate, solve
from targetprop.precision import widened

Propagation = Literal["layerwise", "joint", "composite", "backprop"]


@dataclass(frozen=True, eq=False)
class Targets:
    """Changes of every layer and how they were found.

    Attributes:
        deltas: ``Δ_1 … Δ_L``, shapes of ``h_1 … h_L``; of several processes, for this one's layers and the output.
        outcomes: how the inversion ended that gave each ``Δ_l``, by name of the layer that was inverted; joint
            sweeps have one,
            named ``"all"``.
    """

    deltas: list[Tensor]
    outcomes: dict[str, Outcome]


def propagate(
    record: Record, bank: Bank, delta: Tensor, inversion: Inversion, propagation: Propagation, *, measure: bool
) -> Targets:
    """Carry the output's change down to every layer.

    Args:
        record: the forward pass.
        bank: the decoders.
        delta: ``Δ_L``, shape of the output.
        inversion: the rule and its settings.
        propagation: "layerwise", "joint" or "composite".
        measure: measure residuals that the rule does not need itself.

    Returns:
        The changes and the outcomes.
    """
    if len(record.layers) == 1:
        return Targets([delta], {})
    function = {"layerwise": _layerwise, "joint": _joint, "composite": _composite}[propagation]
    return function(record, bank, delta, inversion, measure)


def _layerwise(record: Record, bank: Bank, delta: Tensor, inversion: Inversion, measure: bool) -> Targets:
    top = len(record.layers) - 1
    deltas, outcomes = {top: delta}, {}
    for index in reversed(range(1, len(record.layers))):
        layer, found = record.layers[index], {}
        if record.places.owns(index):
            g = bank.inverse(index, record) if inversion.needs_decoder else _no_decoder
            f = layer.fast if inversion.needs_decoder else layer.f
            solution = solve(Problem(f, g, deltas[index], layer.x, layer.h), inversion, measure=measure)
            outcomes[layer.layer.name], found = solution.outcome, {index: solution.delta}
        deltas |= record.places.down(found, {index: widened(layer.x)})
    return Targets(_in_order(deltas), outcomes)


def _composite(record: Record, bank: Bank, delta: Tensor, inversion: Inversion, measure: bool) -> Targets:
    deltas, outcomes = {len(record.layers) - 1: delta}, {}
    for index in reversed(range(1, len(record.layers))):
        layer, above = record.layers[index], record.layers[index:]

        def forward(x: Tensor, maps: tuple[Map, ...] = tuple(upper.f for upper in above)) -> Tensor:
            return reduce(lambda value, f: f(value), maps, x)

        g = bank.composite(index, record) if inversion.needs_decoder else _no_decoder
        solution = solve(Problem(forward, g, delta, layer.x, record.output), inversion, measure=measure)
        deltas[index - 1] = solution.delta
        outcomes[layer.layer.name] = solution.outcome
    return Targets(_in_order(deltas), outcomes)


def _joint(record: Record, bank: Bank, delta: Tensor, inversion: Inversion, measure: bool) -> Targets:
    assert isinstance(inversion, InputSpace)
    layers, places, top = record.layers, record.places, len(record.layers) - 1
    problems = {
        index: Problem(layers[index].fast, bank.inverse(index, record), delta, layers[index].x, layers[index].h)
        for index in record.own
        if index > 0
    }
    likes = {index: widened(layers[index].x) for index in range(1, len(layers))}
    sizes = [problem.x0.shape[1:].numel() for problem in problems.values()]

    def split(u: Tensor) -> dict[int, Tensor]:
        parts = u.split(sizes, dim=1) if sizes else ()
        return {index: part.reshape(p.x0.shape) for (index, p), part in zip(problems.items(), parts, strict=True)}

    def join(parts: Iterable[Tensor]) -> Tensor:
        return torch.cat([delta.new_zeros(len(delta), 0), *(part.flatten(1) for part in parts)], dim=1)

    def evaluate(u: Tensor, step: int, error: bool, direction: bool) -> Evaluation:
        changes = split(u)
        asked = {top: delta} | places.down(changes, likes)
        reached = {index: p.base if step == 0 else p.f_at(changes[index]) for index, p in problems.items()}
        missing = {index: p.base - reached[index] + asked[index] for index, p in problems.items()}
        if not direction:
            return Evaluation(u, join(missing.values()), None)
        moves = [p.g_difference(reached[index], missing[index]) for index, p in problems.items()]
        return Evaluation(u, join(missing.values()), join(moves), fallback() if step == 0 else None)

    def fallback() -> Tensor:
        found, asked = {}, {top: delta}
        for index in range(top, 0, -1):
            if index in problems:
                found[index] = problems[index].g_difference(problems[index].y0, asked[index])
            asked |= places.down({index: found[index]} if index in found else {}, {index: likes[index]})
        return join(found[index] for index in problems)

    x0, origin = join(p.x0 for p in problems.values()), join(p.origin for p in problems.values())
    # Until the sweeps have reached the bottom, a small residual only means that little has moved yet.
    solution = iterate(
        evaluate,
        origin,
        x0,
        inversion,
        measure=measure,
        complete_from=top,
        columns=Columns(None if places.alone else places.sum_),
    )
    return Targets(_in_order({top: delta} | places.down(split(solution.delta), likes)), {"all": solution.outcome})


def _in_order(deltas: dict[int, Tensor]) -> list[Tensor]:
    return [deltas[index] for index in sorted(deltas)]


def _no_decoder(y: Tensor) -> Tensor:
    raise RuntimeError("this inversion rule was said not to need a decoder")
