r"""From the output's target to every layer's: ``ĥ_L → ĥ_{L-1} → … → ĥ_1``.

* *layerwise*: each layer's target is inverted into the next one down;
* *joint*: all layers at once, ``ĥ_l ← ĥ_l + α (g_{l+1}(ĥ_{l+1}) − g_{l+1}(f_{l+1}(ĥ_l)))`` (Bengio 2020): the layers
  of a sweep do not wait for each other, and after ``L − 1`` sweeps the bottom has heard of the top;
* *composite*: ``F = f_L∘…∘f_{l+1}`` is inverted in one piece for every ``l``, which corrects errors that pile up.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from targetprop.decoders import Bank
from targetprop.forward import Record
from targetprop.inversion import Evaluation, InputSpace, Inversion, Map, Outcome, Problem, iterate, solve

Propagation = Literal["layerwise", "joint", "composite", "backprop"]


@dataclass(frozen=True, eq=False)
class Targets:
    """Changes of every layer and how they were found.

    Attributes:
        deltas: ``Δ_1 … Δ_L``, shapes of ``h_1 … h_L``.
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
    deltas, outcomes = [delta], {}
    for index in reversed(range(1, len(record.layers))):
        layer = record.layers[index]
        g = bank.inverse(index, record) if inversion.needs_decoder else _no_decoder
        f = layer.fast if inversion.needs_decoder else layer.f
        solution = solve(Problem(f, g, deltas[-1], layer.x, layer.h), inversion, measure=measure)
        deltas.append(solution.delta)
        outcomes[layer.layer.name] = solution.outcome
    return Targets(deltas[::-1], outcomes)


def _composite(record: Record, bank: Bank, delta: Tensor, inversion: Inversion, measure: bool) -> Targets:
    deltas, outcomes = [delta], {}
    for index in reversed(range(1, len(record.layers))):
        layer, above = record.layers[index], record.layers[index:]

        def forward(x: Tensor, maps: tuple[Map, ...] = tuple(upper.f for upper in above)) -> Tensor:
            return reduce(lambda value, f: f(value), maps, x)

        g = bank.composite(index, record) if inversion.needs_decoder else _no_decoder
        solution = solve(Problem(forward, g, delta, layer.x, record.output), inversion, measure=measure)
        deltas.append(solution.delta)
        outcomes[layer.layer.name] = solution.outcome
    return Targets(deltas[::-1], outcomes)


def _joint(record: Record, bank: Bank, delta: Tensor, inversion: Inversion, measure: bool) -> Targets:
    assert isinstance(inversion, InputSpace)
    upper = record.layers[1:]
    start = [layer.x for layer in upper]
    sizes = [x.shape[1:].numel() for x in start]
    problems = [
        Problem(layer.fast, bank.inverse(index, record), delta, layer.x, layer.h)
        for index, layer in enumerate(upper, start=1)
    ]

    def split(u: Tensor) -> list[Tensor]:
        return [part.reshape(x.shape) for part, x in zip(u.split(sizes, dim=1), start, strict=True)]

    def evaluate(u: Tensor, step: int, error: bool, direction: bool) -> Evaluation:
        changes = split(u)
        reached = [p.base if step == 0 else p.f_at(v) for p, v in zip(problems, changes, strict=True)]
        missing = [p.base - y + v for p, y, v in zip(problems, reached, [*changes[1:], delta], strict=True)]
        if not direction:
            return Evaluation(u, _join(missing), None)
        moves = [p.g_difference(y, e) for p, y, e in zip(problems, reached, missing, strict=True)]
        return Evaluation(u, _join(missing), _join(moves), fallback() if step == 0 else None)

    def fallback() -> Tensor:
        change, chained = delta, []
        for p in reversed(problems):
            change = p.g_difference(p.y0, change)
            chained.append(change)
        return _join(chained[::-1])

    x0 = _join(start)
    # Until the sweeps have reached the bottom, a small residual only means that little has moved yet.
    solution = iterate(
        evaluate, _join([p.origin for p in problems]), x0, inversion, measure=measure, complete_from=len(upper)
    )
    return Targets([*split(solution.delta), delta], {"all": solution.outcome})


def _join(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def _no_decoder(y: Tensor) -> Tensor:
    raise RuntimeError("this inversion rule was said not to need a decoder")
