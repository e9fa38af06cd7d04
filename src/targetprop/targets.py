r"""From the output's target to every layer's: ``ĥ_L → ĥ_{L-1} → … → ĥ_1``.

* *layerwise*: each layer's target is inverted into the next one down;
* *joint* and *top-down*: sweeps over all layers, see `targetprop.joint`;
* *composite*: ``F = f_L∘…∘f_{l+1}`` is inverted in one piece for every ``l``, which corrects errors that pile up.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor

from targetprop.decoders import Bank
from targetprop.inversion import InputSpace, Inversion, Map, Outcome, Problem, by_sample, solve
from targetprop.joint import Targets, joint, top_down
from targetprop.layers import Pulled, Record, Wanted
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
    wanted: Sequence[Wanted] = (),
    keep_graph: bool = False,
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
        wanted: of every layer, where one backward pass gives it all.
        keep_graph: whether that will be made again.

    Returns:
        The changes and the outcomes.
    """
    peers = Peers() if peers is None else peers
    if record.connected:
        return _in_one_pass(record, delta, wanted, keep_graph)
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


def _in_one_pass(record: Record, delta: Tensor, wanted: Sequence[Wanted], keep_graph: bool) -> Targets:
    """Go down in one backward pass: where all inverses are transposes, no ``Δ_l`` has to be looked at."""
    owned = dict.fromkeys(p for want in wanted for p in want.gradients)
    uses = [layer.maps if want.maps else () for layer, want in zip(record.layers, wanted, strict=True)]
    edges: list[Any] = [*owned, *(use.output for own in uses for use in own if use.output is not None)]
    top, options = record.layers[-1].y, {"retain_graph": keep_graph, "allow_unused": True}
    found = iter(torch.autograd.grad(top, edges, delta, **options) if edges else ())
    gradients, pulled = {p: next(found) for p in owned}, {}
    for layer, want, own in zip(record.layers, wanted, uses, strict=True):
        shares = tuple(gradients.pop(p, None) for p in want.gradients)
        pulled[layer.name] = Pulled(None, shares, tuple(None if use.output is None else next(found) for use in own))
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
