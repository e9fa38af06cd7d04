r"""Joint sweeps: the targets of all layers at once, ``ĥ_l ← ĥ_l + α (g_{l+1}(ĥ_{l+1}) − g_{l+1}(f_{l+1}(ĥ_l)))``.

In *joint* sweeps the layers do not wait for each other, and after ``L − 1`` sweeps the bottom has heard of the top
(Bengio 2020, arXiv:2007.15139). In *top-down* sweeps each layer takes the target that the one above has just found, so
that the first sweep already gives every layer its difference target. Both have one fixed point, that of inverting layer
by layer to the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd

import torch
from torch import Tensor

from targetprop.decoders import Bank
from targetprop.inversion import Evaluation, InputSpace, Outcome, Problem, by_sample, iterate
from targetprop.layers import Pulled, Record
from targetprop.peers import Peers


@dataclass(frozen=True, eq=False)
class Targets:
    """Changes of the layers and how they were found.

    Attributes:
        deltas: ``Δ_l`` of this process' layers in forward order, shapes of ``h_l``; empty, ``(0,)``, where one backward
            pass has made the gradients in `pulled`.
        outcomes: how the inversion ended that gave each ``Δ_l``, by name of the layer that was inverted; joint sweeps
            have one, named ``"all"``.
        from_output: whether every inversion began at the output, not at the layer above.
        pulled: what came out of the backward pass of a layer with the target below it, by layer name.
    """

    deltas: list[Tensor]
    outcomes: dict[str, Outcome]
    from_output: bool = False
    pulled: dict[str, Pulled] = field(default_factory=dict)


class _Iterate:
    """The changes of all inverted layers' inputs, side by side in one matrix of shape ``(n, Σ d_l)``."""

    def __init__(self, record: Record, bank: Bank, delta: Tensor) -> None:
        self._layers = record.inverted
        n = gcd(len(delta), *(len(t) for layer in self._layers for t in (layer.x, layer.h)))
        found = (Problem(layer.f, bank.inverse(layer), delta, layer.x, layer.h) for layer in self._layers)
        self.problems = [by_sample(problem, n) for problem in found]
        self.delta = delta if len(delta) == n else delta.reshape(n, -1)
        self._sizes, self._nothing = [p.x0.shape[1:].numel() for p in self.problems], delta.new_zeros(n, 0)

    def split(self, u: Tensor) -> list[Tensor]:
        parts = u.split(self._sizes, dim=1) if self._sizes else ()
        return [part.reshape(p.x0.shape) for p, part in zip(self.problems, parts, strict=True)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([self._nothing, *(part.flatten(1) for part in parts)], dim=1)

    def of_layers(self, u: Tensor) -> list[Tensor]:
        """Give the changes in the shapes that the layers' inputs have."""
        return [part.reshape(layer.x.shape) for part, layer in zip(self.split(u), self._layers, strict=True)]

    def origin(self) -> Tensor:
        return self.join([p.origin for p in self.problems])

    def x0(self) -> Tensor:
        return self.join([p.x0 for p in self.problems])


def joint(record: Record, bank: Bank, delta: Tensor, inversion: InputSpace, peers: Peers, *, measure: bool) -> Targets:
    """Sweep over all layers at once until they have come to rest.

    Args:
        record: the forward pass.
        bank: the decoders.
        delta: ``Δ_L``, shape of the output.
        inversion: steps, step size, tolerance and mixing.
        peers: the processes that work on other layers.
        measure: measure residuals that the iteration does not need itself.

    Returns:
        The changes and how the sweeps ended.
    """
    all_layers = _Iterate(record, bank, delta)
    problems, join = all_layers.problems, all_layers.join

    def from_above(changes: list[Tensor], top_change: Tensor) -> list[Tensor]:
        """Give the change of the output of every layer, of which the iterates hold those of the inputs."""
        lowest = None if record.from_first else changes[0]
        top = peers.exchange_changes(lowest, top_change)
        return [*(changes if record.from_first else changes[1:]), top]

    def evaluate(u: Tensor, step: int, error: bool, direction: bool) -> Evaluation:
        changes = all_layers.split(u)
        asked = from_above(changes, all_layers.delta)[int(record.from_first) :]
        reached = [p.base if step == 0 else p.f_at(change) for p, change in zip(problems, changes, strict=True)]
        missing = [p.base - y + wanted.reshape(y.shape) for p, y, wanted in zip(problems, reached, asked, strict=True)]
        if not direction:
            return Evaluation(u, join(missing), None)
        moves = [p.g_difference(y, left) for p, y, left in zip(problems, reached, missing, strict=True)]
        return Evaluation(u, join(missing), join(moves), fallback() if step == 0 else None)

    def fallback() -> Tensor:
        """Give the difference targets, layer by layer from the top."""
        found = [peers.receive_change(all_layers.delta)]
        for problem in reversed(problems):
            found.append(problem.g_difference(problem.y0, found[-1].reshape(problem.y0.shape)))
        if not record.from_first:
            peers.send_change(found[-1])
        return join(found[:0:-1])

    # Until the sweeps have reached the bottom, a small residual only means that little has moved yet.
    solution = iterate(
        evaluate,
        all_layers.origin(),
        all_layers.x0(),
        inversion,
        measure=measure,
        complete_from=peers.depth(len(record.layers)) - 1,
        columns=peers.columns,
    )
    return Targets(from_above(all_layers.of_layers(solution.delta), delta), {"all": solution.outcome})


def top_down(record: Record, bank: Bank, delta: Tensor, inversion: InputSpace, *, measure: bool) -> Targets:
    """Sweep from the top down, each layer after the one above it.

    Args:
        record: the forward pass.
        bank: the decoders.
        delta: ``Δ_L``, shape of the output.
        inversion: steps, step size, tolerance and mixing.
        measure: measure residuals that the iteration does not need itself.

    Returns:
        The changes and how the sweeps ended; the residual is that of all layers' equations together.
    """
    all_layers = _Iterate(record, bank, delta)

    def evaluate(u: Tensor, step: int, error: bool, direction: bool) -> Evaluation:
        missing: list[Tensor] = []
        moves: list[Tensor] = []
        above = old = all_layers.delta
        for p, change in zip(reversed(all_layers.problems), reversed(all_layers.split(u)), strict=True):
            fx = p.base if step == 0 else p.f_at(change)
            above, old = above.reshape(fx.shape), old.reshape(fx.shape)
            missing.append(p.base - fx + old)
            if direction:
                moves.append(p.g_difference(fx, missing[-1] + (above - old)))
            old, above = change, change + inversion.alpha * moves[-1] if direction else change
        move = all_layers.join(moves[::-1]) if direction else None
        return Evaluation(u, all_layers.join(missing[::-1]), move, move if step == 0 else None)

    solution = iterate(evaluate, all_layers.origin(), all_layers.x0(), inversion, measure=measure)
    return Targets([*all_layers.of_layers(solution.delta), delta], {"all": solution.outcome})
