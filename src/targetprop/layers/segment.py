"""A segment: the stretch of a recorded pass that makes up a layer."""

from dataclasses import dataclass

from targetprop.layers.pieces import Piece
from targetprop.layers.sites import Site
from targetprop.layers.tape import Call, Value


@dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of calls that makes up a layer ``f_l``.

    Attributes:
        name: common path of the modules that hold its maps.
        calls: the calls, in order.
        end: the value ``h_l`` that it ends with; None for what follows the last cut, up to the loss.
        derived: values made from parameters alone that other segments use too.
        start: the value that it begins with, where it can be made again on other inputs.
        pieces: its calls from there on, as far as they can be inverted one after the other.
        followed: whether autograd can follow it from there to its end.
        parameters: names of the parameters that it uses, directly or through values made from parameters alone.
    """

    name: str
    calls: tuple[Call, ...]
    end: Value | None
    parameters: tuple[str, ...] = ()
    derived: tuple[Value, ...] = ()
    start: Value | None = None
    pieces: tuple[Piece, ...] = ()
    followed: bool = True

    @property
    def sites(self) -> list[Site]:
        """The sites of its maps."""
        return [site for call in self.calls for site in call.sites]

    @property
    def by_sample(self) -> bool:
        """Whether what is handed on inside has samples on its first axis, each in as many rows as the others."""
        n = max(1, self.pieces[0].start.shape[0]) if self.pieces else 1
        return all(v.shape[:1].numel() % n == 0 for piece in self.pieces for v in (piece.start, piece.end))
