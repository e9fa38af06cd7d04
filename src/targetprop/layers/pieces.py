"""Pieces of a layer: its calls between two places where one value carries all that its input changes.

A linear map, an activation or a pooling is a piece by itself; what branches and comes together again, such as a
residual block or attention, is one piece.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from targetprop.layers.repeat import Repeated
from targetprop.layers.sites import Site
from targetprop.layers.tape import Value


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a layer that can be inverted by itself.

    Attributes:
        calls: the calls that lead from its start to its end.
        start: the value that it begins with.
        end: the value that it ends with.
    """

    calls: tuple[Repeated, ...]
    start: Value
    end: Value

    @property
    def sites(self) -> list[Site]:
        """Its uses of weights."""
        return [site for repeated in self.calls for site in repeated.call.sites]

    @property
    def names(self) -> list[str]:
        """The functions that it calls."""
        return [repeated.call.name for repeated in self.calls]

    @property
    def random(self) -> bool:
        """Whether it drew random numbers."""
        return any(repeated.call.random for repeated in self.calls)


def split(calls: Sequence[Repeated], start: Value, end: Value) -> tuple[Piece, ...]:
    """Split the calls of a layer wherever one value is alive.

    Args:
        calls: the calls that lead on from its input, in order.
        start: its input.
        end: its output.

    Returns:
        The pieces in order.
    """
    calls = _leading_to(end, calls)
    last = {id(v): place for place, repeated in enumerate(calls) for v in repeated.call.inputs}
    last[id(end)] = len(calls)
    pieces: list[Piece] = []
    alive, begin, below = {id(start): start}, 0, start
    for place, repeated in enumerate(calls):
        alive |= {id(v): v for v in repeated.call.outputs if last.get(id(v), -1) > place}
        alive = {key: v for key, v in alive.items() if last[key] > place}
        (here, *others) = alive.values() or (None,)
        if here is None or others or not (here.trained and here.real):
            continue
        if any(v is here for v in repeated.call.outputs):
            pieces.append(Piece(tuple(calls[begin : place + 1]), below, here))
            begin, below = place + 1, here
    return tuple(pieces)


def _leading_to(end: Value, calls: Sequence[Repeated]) -> list[Repeated]:
    wanted, kept = {id(end)}, []
    for repeated in reversed(calls):
        if any(id(v) in wanted for v in repeated.call.outputs):
            wanted.update(id(v) for v in repeated.call.inputs)
            kept.append(repeated)
    return kept[::-1]
