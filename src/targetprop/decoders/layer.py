"""Decoders of whole layers: the decoders of their pieces, last piece first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from targetprop.decoders.activation import find_inverse
from targetprop.decoders.affine import AffineDecoder, BoundAffine
from targetprop.decoders.maps import BoundMap, MapDecoder, map_decoder
from targetprop.decoders.nature import Jacobian, Nature, find_nature
from targetprop.decoders.registry import Style, find_builder
from targetprop.layers import Closed, LayerRecord, MapUse, Piece
from targetprop.layers.repeat import Step, repeat
from targetprop.layers.sites import tensors_in
from targetprop.precision import at_least_float32, no_autocast


@dataclass(frozen=True, eq=False)
class Inverse:
    """A decoder bound to one forward pass: ``g(y)`` and, without cancellation, its differences.

    Attributes:
        decode: ``g``.
        difference: ``(y, change) ↦ g(y + change) − g(y)``.
    """

    decode: Callable[[Tensor], Tensor]
    difference: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, y: Tensor) -> Tensor:
        """Decode."""
        return self.decode(y)


@dataclass(frozen=True, eq=False)
class Scaled:
    """``g(y) = d ∘ (y − c)``: what acts on each value alone.

    Attributes:
        diagonal: ``d``.
        offset: ``c``; None for zero.
    """

    diagonal: Tensor
    offset: Tensor | None = None

    affine = True
    moves = True

    def __call__(self, y: Tensor) -> Tensor:
        """Decode."""
        return self.linear(y if self.offset is None else y - self.offset[: len(y)])

    def linear(self, change: Tensor) -> Tensor:
        """Multiply."""
        return change * self.diagonal[: len(change)]


@dataclass(frozen=True, eq=False)
class Transposed:
    """``g(y) = D Jᵀ y`` with the Jacobian of the forward pass.

    Attributes:
        jacobian: ``J``.
        gain: ``D = diag(Jᵀ J 1)⁻¹``, which returns constants as they are; None for the identity.
        moves: whether ``J`` puts each value, scaled, at a place of its own.
    """

    jacobian: Jacobian
    gain: Tensor | None
    moves: bool

    affine = True

    def __call__(self, y: Tensor) -> Tensor:
        """Decode."""
        return self.linear(y)

    def linear(self, change: Tensor) -> Tensor:
        """Pull back; samples that are not there ask for nothing."""
        y = self.jacobian.y
        rows = len(change) * len(self.jacobian.x) // max(1, len(y))
        if len(change) < len(y):
            change = torch.cat([change, change.new_zeros(len(y) - len(change), *change.shape[1:])])
        x = self.jacobian.pull(change)
        return (x if self.gain is None else x * self.gain)[:rows]


@dataclass(frozen=True, eq=False)
class Applied:
    """``g`` as it is: the inverse of an activation, or a decoder of the user's.

    Attributes:
        function: ``g``.
    """

    function: Callable[[Tensor], Tensor]

    affine = False
    moves = False

    def __call__(self, y: Tensor) -> Tensor:
        """Decode."""
        return self.function(y)

    def linear(self, change: Tensor) -> Tensor:
        """Refuse: it is not known to be affine."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Reused(Applied):
    """An activation used once more on the output of the map that follows it, as decoders ``g(y) = Ω σ(y)`` do."""


Part = BoundMap | BoundAffine | Scaled | Transposed | Applied


class LayerDecoder(nn.Module):
    """The inverse of a layer: the decoders of its pieces, last piece first.

    Weights are learned where a piece has weights, or branches; other pieces are undone by what is known of them.

    Args:
        style: how pieces without weights that keep the shape are undone.
        record: an example pass.
    """

    def __init__(self, style: Style, record: LayerRecord) -> None:
        """Make what is learned."""
        super().__init__()
        self.style: Style = style
        self.learned = nn.ModuleDict()
        self._weights = _weights_of(record)
        ends = [*(given_to(record, place) for place in range(1, len(record.layer.segment.pieces))), record.h]
        for place, piece in enumerate(record.layer.segment.pieces):
            decoder = self._build(record, place, piece, ends[place])
            if decoder is not None:
                if given_to(record, place).is_complex() or ends[place].is_complex():
                    raise ValueError(
                        f"layer {record.name}: a decoder learns real numbers, and {piece.names[0]} is of complex ones;"
                        " let it work on real and imaginary parts"
                    )
                self.learned[_key(record, place)] = decoder.to(record.h.device)

    def _build(self, record: LayerRecord, place: int, piece: Piece, y: Tensor) -> nn.Module | None:
        x, func = given_to(record, place), steps_of(record, place)[0].func
        if isinstance(func, Closed) and len(piece.calls) == 1 and (builder := find_builder(func.module)) is not None:
            return builder(func.module, x, y, self.style)
        sites = piece.sites
        if len(sites) == 1 and len(piece.calls) == 1:
            made = map_decoder(use_of(record, piece), x, y)
            if made is not None:
                return made
        if not sites:
            nature = nature_of(record, place)
            if not nature.opaque or nature.same_shape:
                return None
        return AffineDecoder(x, y, piece.names)

    def bind(self, record: LayerRecord) -> Inverse:
        """Bind to one forward pass."""
        parts = self.parts(record)

        def decode(y: Tensor) -> Tensor:
            for part in parts:
                y = part(y)
            return y

        return Inverse(decode, lambda y, change: _difference(parts, y, change))

    def parts(self, record: LayerRecord) -> list[Part]:
        """List the decoders of the pieces in the order of decoding; what leaves its values as they are is left out."""
        found = record.memo.get(self)
        if found is None:
            if self._weights != _weights_of(record):
                raise ValueError(
                    f"layer {record.name} has weights of other shapes now than when its decoder was made; build the"
                    " engine after changing the model"
                )
            found = []
            for place in reversed(range(len(record.layer.segment.pieces))):
                part = self._part(record, place)
                if isinstance(part, Reused) and found and isinstance(found[-1], BoundMap | BoundAffine):
                    found.insert(-1, part)
                elif part is not None:
                    found.append(part)
            record.memo[self] = found
        return found

    def _part(self, record: LayerRecord, place: int) -> Part | None:
        piece, key = record.layer.segment.pieces[place], _key(record, place)
        decoder = self.learned[key] if key in self.learned else None
        if isinstance(decoder, MapDecoder):
            return decoder.bind(use_of(record, piece), given_to(record, place))
        if isinstance(decoder, AffineDecoder):
            return decoder.bind(given_to(record, place))
        if decoder is not None:
            return Applied(decoder)
        if piece.sites or (nature_of(record, place).opaque and not nature_of(record, place).same_shape):
            raise ValueError(
                f"layer {record.name} makes other calls now than when its decoder was made; build the engine with the"
                " model in the mode in which it is trained"
            )
        return _undo(record, place, self.style)


def _difference(parts: Sequence[Part], y: Tensor, change: Tensor) -> Tensor:
    affine = max((i + 1 for i, part in enumerate(parts) if not part.affine), default=0)
    if affine:
        y, moved = at_least_float32(y), at_least_float32(y) + at_least_float32(change)
        with no_autocast(y):  # the difference of the two may be smaller than half precision's rounding
            for part in parts[:affine]:
                y, moved = part(y), part(moved)
        change = moved - y
    for part in parts[affine:]:
        change = part.linear(change)
    return change


def _undo(record: LayerRecord, place: int, style: Style) -> Part | None:
    """Undo a piece without weights at the forward pass; None where that leaves values as they are."""
    nature, piece = nature_of(record, place), record.layer.segment.pieces[place]
    if nature.opaque:
        return None
    if style == "forward" and _is_activation(record, place):
        return Reused(_map(record, place))
    transposed, random = style == "transpose", piece.random
    if nature.diagonal and not (transposed or random):
        return _invert(record, place) if style == "inverse" else None
    if nature.same_shape and not (transposed or random or nature.moves):
        return None
    with no_autocast(record.x):
        jacobian = Jacobian(_map(record, place), given_to(record, place))
        if nature.diagonal:
            slope = jacobian.pull(torch.ones_like(jacobian.y))
            return Scaled(slope if transposed else reciprocal(slope))
        gain = None
        if nature.uneven and not transposed:
            gain = reciprocal(jacobian.pull(jacobian.push(torch.ones_like(jacobian.x))))
    return Transposed(jacobian, gain, nature.moves)


def _is_activation(record: LayerRecord, place: int) -> bool:
    """Say whether a piece is a function of each value alone, the same for all, so that it applies to any shape."""
    piece, steps = record.layer.segment.pieces[place], steps_of(record, place)
    alone = nature_of(record, place).diagonal and not piece.random and len(piece.calls) == 1
    return alone and not any(True for step in steps for _ in tensors_in(step.args))


def _invert(record: LayerRecord, place: int) -> Part | None:
    """Undo what acts on each value alone: by its inverse if that is known, or if it is affine."""
    step = steps_of(record, place)[0]
    if len(record.layer.segment.pieces[place].calls) == 1:
        inverse = find_inverse(step.func, *step.args)
        if inverse is not None:
            return Applied(inverse)
    f, x = _map(record, place), given_to(record, place)
    with torch.no_grad():
        offset = f(torch.zeros_like(x))
        slope = f(torch.ones_like(x)) - offset
        for value in (-1.0, 0.1, 3.0):
            if not torch.allclose(f(torch.full_like(x, value)), offset + value * slope, rtol=1e-4, atol=1e-6):
                return None
    return Scaled(reciprocal(slope), offset)


_SMALL = 1e-6


def reciprocal(values: Tensor) -> Tensor:
    """Invert what is not zero."""
    return values.reciprocal().masked_fill(values.abs() < _SMALL, 0.0)


def steps_of(record: LayerRecord, place: int) -> Sequence[Step]:
    """Find the calls of a piece, to be made again."""
    counts = [len(piece.calls) for piece in record.layer.segment.pieces]
    begin = sum(counts[:place])
    return record.steps[begin : begin + counts[place]]


def given_to(record: LayerRecord, place: int) -> Tensor:
    """Find the input of a piece in the forward pass, of all samples."""
    given = steps_of(record, place)[0].given
    if place == 0:
        return record.whole
    if given is not None and given[0]._version == given[1]:
        return given[0]
    x = record.whole  # it was overwritten since
    with torch.no_grad():
        for earlier in range(place):
            x = _map(record, earlier)(x)
    return x


def _weights_of(record: LayerRecord) -> set[tuple[int, ...]]:
    """Collect the shapes of a layer's weights; a sequence of another length may use one more often."""
    return {tuple(use.base.shape) for use in record.maps}


def use_of(record: LayerRecord, piece: Piece) -> MapUse:
    """Find the use of the weight of a piece that has one."""
    (site,) = piece.sites
    return next(use for use in record.maps if use.site is site)


def _map(record: LayerRecord, place: int) -> Callable[[Tensor], Tensor]:
    steps, piece = steps_of(record, place), record.layer.segment.pieces[place]
    writes = any(repeated.call.writes for repeated in piece.calls)
    return lambda x: repeat(steps, piece.start, piece.end, x.clone() if writes else x)


_NATURES: WeakKeyDictionary[Piece, Nature] = WeakKeyDictionary()  # found once for each piece


def nature_of(record: LayerRecord, place: int) -> Nature:
    """Find what a piece without weights does to its values."""
    piece = record.layer.segment.pieces[place]
    if piece not in _NATURES:
        _NATURES[piece] = find_nature(_map(record, place), given_to(record, place))
    return _NATURES[piece]


def _key(record: LayerRecord, place: int) -> str:
    """Name what a piece learns after where it begins."""
    names = [f"{p.calls[0].call.path}:{p.names[0]}".replace(".", "/") for p in record.layer.segment.pieces]
    return names[place] + "@" * names[:place].count(names[place])


class WholeLayerDecoder(LayerDecoder):
    """A user's own module as the decoder of a whole layer; nothing is assumed of it.

    Args:
        module: maps ``h_l`` to ``h_{l-1}``.
    """

    def __init__(self, module: nn.Module) -> None:
        """Keep the module."""
        nn.Module.__init__(self)
        self.learned = nn.ModuleDict({"own": module})

    def parts(self, record: LayerRecord) -> list[Part]:
        """Give the module; see `LayerDecoder.parts`."""
        return [Applied(self.learned["own"])]
