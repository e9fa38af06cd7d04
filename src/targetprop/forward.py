"""One forward pass, cut between layers, into a record that the later stages read.

Each layer sees a detached ``h_{l-1}``, so the autograd graph of ``h_l`` reaches only its own ``θ_l``. What a layer drew
or measured on the way (dropout masks, batch statistics) is kept as *side data*, and `LayerRecord.f` repeats the layer
with it: inverting a layer means inverting the very function that was applied.

>>> import torch
>>> from torch import nn
>>> from targetprop.chain import build_chain
>>> record = run_forward(build_chain(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))), torch.ones(4, 3))
>>> layer = record.layers[0]
>>> bool((layer.f(layer.x) == layer.h).all())     # the same mask again
True
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]

from targetprop.chain import Chain, Layer, visible
from targetprop.placement import Places
from targetprop.replay import Replay, Side, has_replay, record_modules, replay_modules
from targetprop.share import Share


def _outline(values: Tensor, rows: int) -> Tensor:
    return values.new_zeros(()).expand(rows, *values.shape[1:])


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """What the forward pass left of one layer.

    Attributes:
        layer: the layer.
        x: its input ``h_{l-1}``, shape ``(n, …)``, detached.
        y: its output ``h_l`` with the graph of ``θ_l``, shape ``(n, …)``.
        sides: side data, one per module of the layer.
        share: which rows of the batch these are.
        inner: outputs of the layer's modules with their graph, one per module; empty unless asked for.
        replay: `replay_modules` of this layer, compiled; None if it is not.
    """

    layer: Layer
    x: Tensor
    y: Tensor
    sides: tuple[Side, ...]
    share: Share
    inner: tuple[Tensor, ...] = ()
    replay: Replay | None = None

    @property
    def h(self) -> Tensor:
        """The output ``h_l``, detached."""
        return self.y.detach()

    def f(self, x: Tensor) -> Tensor:
        """Repeat the layer on another input, with the side data of the forward pass.

        Args:
            x: input of shape ``(n, …)``.

        Returns:
            ``f_l(x)``, shape ``(n, …)``.
        """
        return replay_modules(self.layer.modules, x, self.sides)

    def fast(self, x: Tensor) -> Tensor:
        """Do what `f` does, compiled if that was asked for; it cannot be differentiated by ``torch.func``.

        Args:
            x: input of shape ``(n, …)``.

        Returns:
            ``f_l(x)``, shape ``(n, …)``.
        """
        return self.f(x) if self.replay is None else self.replay(self.layer.modules, x, self.sides)

    def head(self, rows: int) -> "LayerRecord":
        """Restrict the record to the first samples of the batch.

        Args:
            rows: how many samples to keep, of all that the ranks hold.

        Returns:
            The same record on these samples, without graph.
        """
        share = self.share.head(rows)
        if share is self.share:
            return self
        rows = share.rows
        sides = tuple(side.each(lambda values: values[:rows]) for side in self.sides)
        return replace(self, x=self.x[:rows], y=self.h[:rows], sides=sides, share=share, inner=())

    def outline(self, rows: int, share: Share) -> "LayerRecord":
        """Keep the shapes of a record only: what another process' layer is known by.

        Args:
            rows: samples.
            share: which rows of the batch they are.

        Returns:
            A record of zeros that take no memory.
        """
        sides = tuple(side.each(lambda values: _outline(values, rows)) for side in self.sides)
        return LayerRecord(self.layer, _outline(self.x, rows), _outline(self.h, rows), sides, share)


@dataclass(frozen=True, eq=False)
class Record:
    """The forward pass of a whole chain.

    Attributes:
        layers: one record per layer, in forward order; of another process' layers the shapes only, but the output.
        places: which layers are this process'.
    """

    layers: tuple[LayerRecord, ...]
    places: Places = field(default_factory=Places)

    @property
    def own(self) -> list[int]:
        """This process' layers, counted from 0."""
        return [index for index in range(len(self.layers)) if self.places.owns(index)]

    @property
    def output(self) -> Tensor:
        """The network's output ``h_L``, detached, shape ``(n, …)``."""
        return self.layers[-1].h

    @property
    def share(self) -> Share:
        """Which rows of the batch the record holds."""
        return self.layers[-1].share

    def head(self, rows: int) -> "Record":
        """Restrict the record to the first ``rows`` samples of the batch.

        Args:
            rows: how many samples to keep, of all that the ranks hold.

        Returns:
            The restricted record.
        """
        if rows >= self.share.total:
            return self
        return Record(tuple(layer.head(rows) for layer in self.layers), self.places)


def run_forward(
    chain: Chain,
    x: Tensor,
    *,
    keep_inner: bool = False,
    replays: Sequence[Replay] | None = None,
    share: Share | None = None,
    places: Places | None = None,
    outlines: Sequence[LayerRecord] = (),
) -> Record:
    """Run a chain once, detached between layers.

    Args:
        chain: the layers.
        x: input ``h_0`` of shape ``(n, …)``.
        keep_inner: keep the outputs of the modules inside each layer too.
        replays: `replay_modules` compiled for each layer; the pass itself is not.
        share: which rows of a larger batch ``x`` is; all of it if None.
        places: which layers this process runs; all if None.
        outlines: records of any batch that give the shapes of the layers which it does not run.

    Returns:
        The record.

    Raises:
        TypeError: a module returned something that is not a tensor.
        ValueError: a module overwrote its input, or hides one that cannot be repeated.
    """
    records: list[LayerRecord] = []
    share = Share.of(len(x)) if share is None else share
    places = Places() if places is None else places
    h = x.detach()
    for index, layer in enumerate(chain.layers):
        if not places.owns(index):
            records.append(outlines[index].outline(len(x), share))
            h = _hand_on(places, records[-1].h, index, len(chain))
            continue
        for module in layer.modules:
            check_repeatable(layer, module)
        try:
            inner, sides = record_modules(layer.modules, h)
        except TypeError as error:
            raise TypeError(
                f"layer {layer.name}: {error}; wrap it in a module that takes one tensor and returns one tensor"
            ) from error
        except ValueError as error:
            raise ValueError(f"layer {layer.name}: {error}") from error
        y = inner[-1] if inner else h
        if not places.alone:  # autocast may round it; all processes have to agree on what travels
            y = y.to(outlines[index].y.dtype)
        replay = None if replays is None else replays[index]
        records.append(LayerRecord(layer, h, y, sides, share, inner if keep_inner else (), replay))
        h = _hand_on(places, y.detach(), index, len(chain))
    if not places.owns(len(chain) - 1):
        records[-1] = replace(records[-1], y=h)
    return Record(tuple(records), places)


def _hand_on(places: Places, h: Tensor, index: int, layers: int) -> Tensor:
    return places.spread(h, index) if index == layers - 1 else places.up(h, index)


@contextmanager
def evaluating(chain: Chain) -> Iterator[None]:
    """Set every module to eval mode for a while: what runs meanwhile changes no statistics.

    Args:
        chain: the layers.

    Yields:
        Nothing.
    """
    modes = [(m, m.training) for layer in chain.layers for top in layer.modules for m in top.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


def check_repeatable(layer: Layer, module: nn.Module) -> None:
    """Refuse a module that hides one whose masks or batch statistics could not be repeated.

    Args:
        layer: the layer that holds the module, for the message.
        module: the module in its present mode.

    Raises:
        ValueError: it does.
    """
    opaque = (part for part in visible(module) if not has_replay(part))
    for part, inner in ((outer, inner) for outer in opaque for inner in outer.modules()):
        if inner.training and isinstance(inner, (_DropoutNd, _BatchNorm)) and getattr(inner, "p", 1.0) > 0:
            raise ValueError(
                f"layer {layer.name}: {type(part).__name__} holds {type(inner).__name__}, whose masks or statistics"
                " cannot be repeated from outside; make its modules a layer's own in an nn.Sequential or a Residual,"
                " call its eval(), or tell how to repeat it with targetprop.register_replay"
            )
