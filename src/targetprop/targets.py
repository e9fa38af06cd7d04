r"""From the output's target to every layer's: ``ĥ_L → ĥ_{L-1} → … → ĥ_1``.

* *layerwise*: each layer's target is inverted into the next one down;
* *joint* and *top-down*: sweeps over all layers, see `targetprop.joint`;
* *composite*: ``F = f_L∘…∘f_{l+1}`` is inverted in one piece for every ``l``, which corrects errors that pile up.
"""

from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from targetprop.decoders import Bank
from targetprop.inversion import InputSpace, Inversion, Map, Outcome, Problem, by_sample, solve
from targetprop.joint import Targets, joint, top_down
from targetprop.layers import Pulled, Record
from targetprop.peers import Peers

Propagation = Literal["layerwise", "joint", "top-down", "composite", "backprop"]


def propagate(
    record: Record,
    bank: Bank,
    delta: Tensor,
    inversion: Inversion,
    propagation: Propagation,
    peers: Peers | None = None,
    *,
    measure: bool = False,
    scale: float = 1.0,
) -> Targets:
    """Carry the output's change down to every layer.

    Args:
        record: the forward pass.
        bank: the decoders.
        delta: ``Δ_L``, shape of the output.
        inversion: the rule and its settings.
        propagation: "layerwise", "joint", "top-down" or "composite".
        peers: the processes that work on other layers; this one alone if None.
        measure: measure residuals that the rule does not need itself.
        scale: ``β n``, what gradients are divided by where one backward pass gives them all.

    Returns:
        The changes and the outcomes.
    """
    peers = Peers() if peers is None else peers
    if record.connected:
        return _in_one_pass(record, delta, scale)
    if peers.depth(len(record.layers)) == 1:
        return Targets([delta], {})
    if propagation == "joint":
        assert isinstance(inversion, InputSpace)
        return joint(record, bank, delta, inversion, peers, measure=measure)
    if propagation == "top-down":
        assert isinstance(inversion, InputSpace)
        return top_down(record, bank, delta, inversion, measure=measure)
    if propagation == "composite":
        return _composite(record, bank, delta, inversion, measure=measure)
    return _layerwise(record, bank, delta, inversion, peers, measure=measure)


def _in_one_pass(record: Record, delta: Tensor, scale: float) -> Targets:
    """Go down in one backward pass: where all inverses are transposes, no ``Δ_l`` has to be looked at."""
    owned: dict[Tensor, None] = dict.fromkeys(p for layer in record.layers for p in layer.parameters)
    found = torch.autograd.grad(record.layers[-1].y, list(owned), delta * (-1 / scale), allow_unused=True)
    gradients, pulled = dict(zip(owned, found, strict=True)), {}
    for layer in record.layers:
        pulled[layer.name] = Pulled(None, tuple(gradients.pop(p, None) for p in layer.parameters), ())
    return Targets([delta.new_empty(0) for _ in record.layers], {}, pulled=pulled)


def _layerwise(
    record: Record, bank: Bank, delta: Tensor, inversion: Inversion, peers: Peers, *, measure: bool
) -> Targets:
    deltas: list[Tensor] = [peers.receive_change(delta)]
    outcomes: dict[str, Outcome] = {}
    for layer in reversed(record.inverted):
        g = bank.inverse(layer) if inversion.needs_decoder else _no_decoder
        problem = by_sample(Problem(layer.f, g, deltas[-1], layer.x, layer.h))
        solution = solve(problem, inversion, measure=measure)
        deltas.append(solution.delta.reshape(layer.x.shape))
        outcomes[layer.name] = solution.outcome
    if not record.from_first:
        peers.send_change(deltas.pop())
    return Targets(deltas[::-1], outcomes)


def _composite(record: Record, bank: Bank, delta: Tensor, inversion: Inversion, *, measure: bool) -> Targets:
    deltas, outcomes = [delta], {}
    for index in reversed(range(1, len(record.layers))):
        layer, above = record.layers[index], record.layers[index:]

        def forward(x: Tensor, maps: tuple[Map, ...] = tuple(upper.f for upper in above)) -> Tensor:
            return reduce(lambda value, f: f(value), maps, x)

        g = bank.composite(above) if inversion.needs_decoder else _no_decoder
        problem = by_sample(Problem(forward, g, delta, layer.x, record.output))
        solution = solve(problem, inversion, measure=measure)
        deltas.append(solution.delta.reshape(layer.x.shape))
        outcomes[layer.name] = solution.outcome
    return Targets(deltas[::-1], outcomes, from_output=True)


def _no_decoder(y: Tensor) -> Tensor:
    raise RuntimeError("this inversion rule was said not to need a decoder")
