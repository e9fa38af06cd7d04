r"""A factor for each side of a linear map, and Polyak's step in their metric.

With inputs ``a`` (a constant 1 for the bias), asked changes ``δ`` and drawn ones ``s`` of the outputs of a map,

    ``A = E[a aᵀ]/m_A``,  ``G = E[s sᵀ]/m_G``,  ``N = (G + μ_G I)⁻¹ (Σ δ aᵀ/n) (A + μ I)⁻¹``,  ``C ← β C + (1 − β) N``

``m`` the mean of a diagonal. ``s`` is what labels drawn from the network's own belief ask for, brought down by the same
decoders as ``δ``: then ``A ⊗ G`` is the map's block of the Fisher matrix, as in K-FAC (Martens & Grosse 2015,
arXiv:1503.05671), and every number of it is local to the layer. Where all positions of a sample have one label, as
under a convolution, ``A = E[gᵀ g]/m_A`` with ``g = Σ s aᵀ`` over them; see `targetprop.updates.input_rows`. The step is

    ``ΔW = min(ρ e / D, r / c) C / L``,   ``D = ⟨Σ δ aᵀ/n, N⟩``,   ``c² = u E[(N a)²]``

with ``e`` how far the loss is above the least of any output, ``L`` the number of maps, and ``u`` how often the pass
uses this one: what its uses change adds up like noise. A change ``N`` of the map lowers the loss by ``D`` to first
order, so this is Polyak's step, as for stochastic gradients (Loizou et al. 2021, arXiv:2002.10542), in the metric of
the factors. It has no units. Of a quadratic function ``D = 2 e`` without noise, so ``ρ = 2`` is then Newton's step;
where noise is most of ``N``, it is most of ``D``, and the step is short. ``e`` and ``D`` are averaged like ``C``. ``r``
bounds the change of the outputs in their own units, in the beginning above all.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from targetprop.belief import Belief
from targetprop.layers import Network, Record
from targetprop.settings import check_ranges
from targetprop.updates.asked import Common, Regression
from targetprop.updates.base import state_key
from targetprop.updates.diagonal import Diagonal, averaged
from targetprop.updates.input_rows import input_rows
from targetprop.updates.leading import Leading
from targetprop.updates.length import Length
from targetprop.updates.linear import Pullback, rest_key
from targetprop.updates.local_gradients import LayerChange, LocalGradients
from targetprop.updates.remembering import RememberingUpdate
from targetprop.updates.side import Side
from targetprop.updates.sides import Sides, Whole
from targetprop.updates.sketch import Sketch

_EARLY = 10  # steps of the beginning, after which factors are made a step more rarely, and so on
_SETTLED = 100  # steps after which factors change slowly: a momentum that has them applied is not out of date then
_WHOLE = "network"
_FEWEST = 48  # directions of a side that does not keep all; fewer slow the beginning
_PART = 4  # how many times as wide a side has to be for its directions to cost clearly less than its whole inverse


@dataclass(frozen=True)
class Kronecker(RememberingUpdate):
    """Both sides of each map's regression, momentum, and a trust region; see the head of this module.

    Take SGD at rate 1 without momentum, a warm-up and a decay to zero. Its ``weight_decay`` is the share of the weights
    that a step takes away, since ``.grad`` holds the change: it is decoupled, as in AdamW.

    The uses of a map that a pass uses several times, as a recurrent network does, are further positions of each sample.
    Parameters that are not solved for, such as gains of norms and tables of vectors, take Adam's steps.

    Beyond the targets, a map of ``d`` inputs and ``k`` outputs on ``n`` rows costs ``n d k + 2 ν n (d² + k²)``
    multiplications a step, and every few steps ``n (d² + k²)`` for the moments and ``2 ν (d³ + k³)`` for their
    directions; memory ``(1 + ν) (d² + k²) + d k``. For sides that keep all directions read 1 for ``2 ν`` and ``ν``;
    sides wider than ``most`` cost ``4 r n d + 3 r² d`` and ``r d`` for ``r = ν most`` directions, and no ``d²``.

    Attributes:
        pullback: see `LinearUpdate`.
        pullback_damping: see `LinearUpdate`.
        damping: ``μ`` of the inputs, relative to the mean of the diagonal.
        shrinkage: ``κ``: ``κ d/n`` is added to ``μ`` of a moment of ``d`` inputs that is worth ``n`` rows.
        output_damping: ``μ_G`` of the outputs.
        momentum: ``β``, share of the last change that is kept, in [0, 1).
        decay: share of the old moments that each observation keeps, in [0, 1).
        observe: steps between two observations of both moments; more often in the beginning.
        every: steps that one inverse serves; fewer in the beginning.
        decrease: ``ρ``, what a step is to lower the loss by if its newest part held for all samples, in units of ``e``;
            2 is Newton's step where there is no noise.
        limit: ``r``, largest root mean square of the change of a map's outputs, of all maps together; over ``√u`` for a
            map that is used ``u`` times.
        rate: step of each number of the parameters that are not solved for.
        leading: ``ν``, share of the directions of a side that are told apart, 48 at least; the others have one value.
            Sides of few units keep all; with 0 every side does.
        most: widest side whose moment is kept whole; of wider ones the leading directions are, as many as of this one.
            Of the network's output the diagonal is.
        rows: most rows that the moments are taken of, as far as fewer positions of a sample can do that.
    """

    pullback: Pullback = "transpose"
    damping: float = 0.03
    shrinkage: float = 3.0
    output_damping: float = 0.5
    momentum: float = 0.9
    decay: float = 0.8
    observe: int = 8
    every: int = 20
    decrease: float = 2.5
    limit: float = 1.3
    rate: float = 3e-3
    leading: float = 0.125
    most: int = 2048
    rows: int = 4096
    draws: ClassVar[bool] = True
    name: ClassVar[str] = "kronecker"

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        positive = {
            name: (getattr(self, name) > 0, "a number > 0") for name in ("output_damping", "decrease", "limit", "rate")
        }
        check_ranges(
            self, "update ", **positive,
            damping=(self.damping >= 0, "a number ≥ 0"),
            shrinkage=(self.shrinkage >= 0, "a number ≥ 0"),
            **{name: (0 <= getattr(self, name) < 1, "a share in [0, 1)") for name in ("momentum", "decay", "leading")},
            **{name: (getattr(self, name) >= 1, "a whole number ≥ 1") for name in ("observe", "every", "most", "rows")},
        )  # fmt: skip

    def memory(self, inputs: int, outputs: int, like: Tensor, *, top: bool) -> Sides:
        """Make both sides; see `RememberingUpdate.memory`."""
        with like.device:  # the default one may be another
            a = self._side(inputs, self.damping, self.shrinkage, diagonal=False)
            return Sides(a, self._side(outputs, self.output_damping, 0.0, diagonal=top), top=top).to(like)

    def _side(self, width: int, damping: float, shrinkage: float, *, diagonal: bool) -> Side:
        wide, few = width > self.most, max(1, min(_FEWEST, width // _PART), round(min(width, self.most) * self.leading))
        cheaper = wide or width >= _PART * max(few, _FEWEST)
        if diagonal or not self.leading or not cheaper:
            return Side(width, self.decay, damping, shrinkage, diagonal=diagonal or wide)
        kind = Sketch if wide else Leading
        return kind(width, self.decay, damping, shrinkage, directions=few)

    def build(self, network: Network, example: Record) -> nn.ModuleDict:
        """Make both sides of every map, and count steps; see `Update.build`."""
        state = super().build(network, example)
        whole, rest = Whole(maps=len(state)), {}
        for layer in reversed(example.layers):
            rest |= {p: rest_key(layer, p) for p in self.split(layer, state)[1]}
        for p, key in rest.items():
            state[key] = _diagonal(p)
        state[_WHOLE] = whole
        return state

    def belief(self, state: nn.ModuleDict) -> Belief | None:
        """Give what an earlier step found: with smoothed labels, what fits them well no longer shows it."""
        return _whole(state).belief()

    def moved(self, name: str, count: int, generator: torch.Generator, state: nn.ModuleDict) -> Tensor | None:
        """Combine the rows of a map's momentum at random; see `Update.moved`."""
        sides = state[state_key(name)] if state_key(name) in state else None
        if not isinstance(sides, Sides) or int(sides.steps) == 0:
            return None
        noise = torch.empty(count, len(sides.momentum), device=generator.device).normal_(generator=generator)
        rows = noise.to(sides.momentum) @ sides.momentum
        return sides.inputs.solve(rows) if int(sides.steps) <= _SETTLED else rows

    def observes(self, state: nn.ModuleDict) -> bool:
        """Say whether the moments have their turn; see `Update.observes`."""
        return _due(int(_whole(state).steps), self.observe, 20)

    def gradients(self, layers: Iterable[LayerChange], common: Common, state: nn.ModuleDict) -> LocalGradients:
        """Solve for the maps, and count the step; see `LinearUpdate.gradients`."""
        found = super().gradients(layers, common, state)
        _whole(state).steps.add_(1)
        if common.belief is not None:
            _whole(state).keep(common.belief)
        return found

    def solve(self, asked: Regression, state: nn.ModuleDict) -> Tensor:
        """Move the momentum and cut it to length; see `LinearUpdate.solve`."""
        sides = state[state_key(asked.name)]
        assert isinstance(sides, Sides)
        if sides.momentum.shape != (asked.outputs, asked.inputs):  # the map has another size now, or no bias
            sides = self.memory(asked.inputs, asked.outputs, sides.momentum, top=sides.top)
            state[state_key(asked.name)] = sides
        if asked.drawn:
            stride = self._stride(asked)
            rows = input_rows(asked, sides.momentum.dtype, int(sides.steps), self.rows, stride)
            sides.inputs.observe(rows, asked.common.batch, asked.independent)
            sides.outputs.observe(asked.some_felt(stride), asked.common.batch)
        newest, product = self._precondition(sides, asked)
        length = Length(self.decrease, self.limit, self.momentum, _whole(state).maps)
        longest = length.measure(newest, product, sides.left, asked, self._stride(asked))
        step = int(sides.steps)
        if product is not None and step < _SETTLED:
            change = sides.solve(averaged(sides.momentum, product, self.momentum, step, longest))
        else:
            change = averaged(sides.momentum, newest, self.momentum, step, longest)
        sides.steps.add_(1)
        return change if asked.common.batch.processes == 1 else change / asked.common.batch.processes

    def step_rest(self, key: str, asked: Tensor, common: Common, state: Any) -> Tensor:
        """Scale each number by itself; see `LinearUpdate.step_rest`."""
        memory = state[key] if key in state else None
        if not isinstance(memory, Diagonal) or memory.average.shape != asked.shape:
            state[key] = memory = _diagonal(asked)
        change = memory.change(asked.to_dense(), self.momentum, common.batch)
        return change.mul_(-self.rate / common.batch.processes).to(asked.dtype)

    def _precondition(self, sides: Sides, asked: Regression) -> tuple[Tensor, Tensor | None]:
        """Apply both factors to what is asked.

        Args:
            sides: what is remembered of the map.
            asked: the regression.

        Returns:
            ``N``, shape ``(k, d)``, and ``Σ δ aᵀ/n`` of the same shape where it was made.
        """
        step, batch = int(sides.steps), asked.common.batch
        if _due(step, self.every, _EARLY):
            sides.inputs.refresh()
            sides.outputs.refresh()
        if step == _SETTLED:
            sides.momentum.copy_(sides.solve(sides.momentum))
        k, d = sides.momentum.shape
        rows = batch.total * asked.positions // batch.processes  # the same in all processes, which have to agree
        by_row = rows * (sides.inputs.cost + sides.outputs.cost)
        if step >= _SETTLED and asked.even and by_row < k * sides.inputs.cost + d * sides.outputs.cost:
            dtype = sides.momentum.dtype
            newest = sides.outputs.solve(asked.dz.to(dtype) / asked.scale).T @ sides.inputs.solve(asked.a.to(dtype))
            batch.sum_([newest])
            return newest, None
        product = asked.product(sides.momentum.dtype) / asked.scale
        batch.sum_([product])
        return sides.solve(product), product

    def _stride(self, asked: Regression) -> int:
        """Say of how many positions one is looked at; of every sample the same."""
        return min(asked.positions, -(-asked.common.batch.total * asked.positions // self.rows))


def _whole(state: nn.ModuleDict) -> Whole:
    found = state[_WHOLE]
    assert isinstance(found, Whole)
    return found


def _diagonal(p: Tensor) -> Diagonal:
    with p.device:  # the default one may be another
        return Diagonal(p.shape).to(p)


def _due(step: int, every: int, early: int) -> bool:
    """Say whether something done every few steps is due; it is done at every one of the first, then more rarely."""
    return step % min(every, 1 + step // early) == 0
