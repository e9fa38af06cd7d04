"""What a forward pass leaves for the stages that follow: a record per layer, and one of all layers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from targetprop.batch import Batch
from targetprop.finite import BAD_INPUT, BAD_OUTPUT, Look
from targetprop.layers.layer import Layer
from targetprop.layers.repeat import Step
from targetprop.layers.repeat import repeat as make_again
from targetprop.layers.sites import Site, tensors_in


@dataclass(frozen=True, eq=False)
class MapUse:
    """A use of a weight in one pass: ``z = W a + b``, whatever kind of product it is.

    Attributes:
        site: where and how.
        weight: the weight ``W``.
        base: the parameter that it is a view of, or the weight itself.
        bias: the bias ``b``, if the call adds one that is a parameter.
        input: the activations ``a``, detached; None where there are several.
        output: what names ``z`` to autograd; None where it has no gradient.
        call: the function, its positional and its keyword arguments; None where it is not to be repeated.
        times: how often the pass uses the weight.
    """

    site: Site
    weight: Tensor
    base: Tensor
    bias: Tensor | None
    input: Tensor | None
    output: Tensor | GradientEdge | None
    call: tuple[Callable[..., Any], Any, Mapping[str, Any]] | None = None
    times: int = 1

    def is_end(self, y: Tensor) -> bool:
        """Say whether ``z`` is the output of its layer itself."""
        if isinstance(self.output, GradientEdge):
            return y.grad_fn is self.output.node and y.output_nr == self.output.output_nr
        return self.output is y


@dataclass(frozen=True, eq=False)
class Wanted:
    """What is wanted of the backward pass of one layer.

    Attributes:
        gradients: the parameters whose gradients are.
        maps: whether the changes asked of the outputs of its maps are.
    """

    gradients: Sequence[Tensor] = ()
    maps: bool = False


@dataclass(frozen=True, eq=False)
class Pulled:
    """What came out of the backward pass of one layer.

    Attributes:
        below: the change of its input, shape of ``h_{l-1}``; None where it was not wanted or there is no layer below.
        gradients: of the parameters that were asked for, in their order.
        maps: the changes asked of the outputs ``z`` of its maps, in their order; empty where they were not wanted.
    """

    below: Tensor | None
    gradients: tuple[Tensor | None, ...]
    maps: tuple[Tensor | None, ...]

    @property
    def values(self) -> list[Tensor]:
        """All that there is."""
        return [value for value in (self.below, *self.gradients, *self.maps) if value is not None]


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """What the forward pass left of one layer.

    Attributes:
        layer: the layer.
        x: its input ``h_{l-1}``, shape ``(n, …)``, detached.
        y: its output ``h_l`` with the graph of ``θ_l``, shape ``(n, …)``.
        parameters: its trainable parameters ``θ_l``, and values made from parameters alone that it shares with others.
        maps: its uses of weights.
        start: where its graph begins; None for the first layer.
        steps: its calls, to be made again; empty unless asked for.
        full: its whole input, where the record is restricted to some samples.
        memo: what stages have worked out of its steps.
    """

    layer: Layer
    x: Tensor
    y: Tensor
    parameters: tuple[Tensor, ...] = ()
    maps: tuple[MapUse, ...] = ()
    start: Tensor | None = None
    steps: tuple[Step, ...] = ()
    full: Tensor | None = None
    memo: dict[Any, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.layer.name

    @property
    def h(self) -> Tensor:
        """The output ``h_l``, detached."""
        return self.y.detach()

    @property
    def whole(self) -> Tensor:
        """The input of all samples."""
        return self.x if self.full is None else self.full

    def f(self, x: Tensor) -> Tensor:
        """Repeat the layer on another input, with the random numbers and the batch statistics of the forward pass.

        Args:
            x: input of shape ``(n, …)``; with fewer samples than the pass had, they are the first ones.

        Returns:
            ``f_l(x)``, shape ``(n, …)``.
        """
        whole, rows = self.whole, len(x)
        if x.dtype is torch.float64:  # a model may cast on its way
            x = x.to(self.x.dtype)
        if rows == len(whole):
            return self._repeat(x)
        if _ALONE.get(self.layer.segment, False):
            return self._repeat(x)
        y = self._repeat(torch.cat([x, whole[rows:].to(x.dtype)]))[:rows]
        if self.layer.segment not in _ALONE and bool(torch.isfinite(y).all()):
            _ALONE[self.layer.segment] = self._same_alone(x, y)
        return y

    def _same_alone(self, x: Tensor, y: Tensor) -> bool:
        """Try whether samples can be repeated without the others."""
        if any(step.random is not None for step in self.steps):
            return False
        try:
            alone = self._repeat(x)
        except (RuntimeError, ValueError, IndexError):
            return False
        scale = float(y.detach().abs().amax())
        return alone.shape == y.shape and torch.allclose(alone, y, rtol=1e-4, atol=1e-5 * scale)

    def _repeat(self, x: Tensor) -> Tensor:
        segment = self.layer.segment
        assert segment.start is not None and segment.end is not None
        if x.stride() != self.whole.stride():  # a model may ask for views that other strides do not allow
            x = torch.empty_strided(x.shape, _strides(x, self.whole), dtype=x.dtype, device=x.device).copy_(x)
        return make_again(self.steps, segment.start, segment.end, x)

    def pull(
        self,
        delta: Tensor,
        *,
        below: bool = False,
        gradients: Sequence[Tensor] = (),
        maps: bool = False,
        keep_graph: bool = False,
        create_graph: bool = False,
    ) -> Pulled:
        """Pull a change of the output back: ``J_θᵀ Δ``, ``J_zᵀ Δ`` and the input's, through the graph of the pass.

        Args:
            delta: ``Δ_l``, shape of ``h_l``.
            below: whether the change of the input is wanted.
            gradients: the parameters whose gradients are wanted.
            maps: whether the changes asked of the maps' outputs are wanted.
            keep_graph: whether it will be pulled again.
            create_graph: whether what comes out is to be differentiated in `delta`.

        Returns:
            What was wanted.
        """
        start, own = self.start if below else None, gradients
        uses = self.maps if maps else ()
        wanted: list[Any] = [*([] if start is None else [start]), *own]
        wanted += [use.output for use in uses if use.output is not None]
        if not (wanted and self.y.requires_grad):
            return Pulled(None if start is None else torch.zeros_like(start), (None,) * len(own), (None,) * len(uses))
        options: Any = {"retain_graph": keep_graph or create_graph, "create_graph": create_graph}
        found = list(torch.autograd.grad(self.y, wanted, delta, **options, allow_unused=True))
        moved = None if start is None else found.pop(0)
        if start is not None and moved is None:
            moved = torch.zeros_like(start)
        changes = iter(found[len(own) :])
        asked = tuple(None if use.output is None else next(changes) for use in uses)
        return Pulled(moved, tuple(found[: len(own)]), asked)

    def head(self, rows: int) -> "LayerRecord":
        """Restrict the record to its first ``rows`` samples, without graph."""
        return replace(self, x=self.x[:rows], y=self.h[:rows], full=self.whole)


_ALONE: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # whether samples of a stretch can be repeated alone


def _strides(x: Tensor, like: Tensor) -> tuple[int, ...]:
    """Lay a tensor out like another one with other sizes, axes in the same order."""
    if x.shape == like.shape:
        return like.stride()
    order, strides, size = sorted(range(x.dim()), key=lambda d: like.stride(d)), [0] * x.dim(), 1
    for d in order:
        strides[d], size = size, size * x.shape[d]
    return tuple(strides)


@dataclass(frozen=True, eq=False)
class LossGradient:
    """A loss and what autograd says of it.

    Attributes:
        value: the loss, a scalar without graph.
        output: its gradient in ``h_L``, shape of that.
        beside: its gradients in parameters that it reaches by another way than the layers.
    """

    value: Tensor
    output: Tensor
    beside: dict[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Record:
    """The forward pass of the layers of one process, which are all layers where it has no peers.

    Attributes:
        layers: one record per layer, in forward order.
        output: the network's output ``h_L``, detached, shape ``(n, …)``.
        batch: which samples these are.
        from_first: whether the first of these layers is the network's first, which is never inverted.
        loss: the loss and its gradients, where it is more than a function of the output; else None.
        derived: values made from parameters alone that several layers use: as leaves, and with their graphs.
        rest: the uses of weights after the last layer.
        connected: whether the graph is in one piece, from the parameters of all layers to the output.
    """

    layers: tuple[LayerRecord, ...]
    output: Tensor
    batch: Batch
    from_first: bool = True
    loss: LossGradient | None = None
    derived: tuple[tuple[Tensor, Tensor], ...] = ()
    rest: Sequence[MapUse] = ()
    connected: bool = False

    @property
    def inverted(self) -> tuple[LayerRecord, ...]:
        """The layers that are inverted, in forward order."""
        return self.layers[1:] if self.from_first else self.layers

    def uses(self) -> Iterator[MapUse]:
        """Yield all uses of weights, in forward order."""
        for layer in self.layers:
            yield from layer.maps
        yield from self.rest

    def spent(self, wanted: Sequence[Wanted]) -> "Record":
        """Let go of activations where one backward pass is all that is left to do: autograd frees them on its way.

        Args:
            wanted: what is wanted of that pass, by layer; where changes of maps are, their inputs stay.

        Returns:
            The record of what is left.
        """
        if not self.connected:
            return self
        nothing, top = self.output.new_empty(0), self.layers[-1]
        layers = tuple(
            replace(
                layer,
                x=nothing,
                y=layer.y if layer is top else nothing,
                maps=layer.maps if want.maps else (),
                start=None,
                steps=(),
            )
            for layer, want in zip(self.layers, wanted, strict=True)
        )
        return replace(self, layers=layers, rest=())

    def looks(self, x: Any) -> Iterator[Look]:
        """Look at the network's input and at the activations of every layer."""
        yield Look(BAD_INPUT, tuple(tensors_in(x)))
        for layer in self.layers:
            yield Look(BAD_OUTPUT, (layer.h,), f"layer {layer.name}")

    def head(self, samples: int) -> "Record":
        """Restrict the record to the first ``samples`` samples of the whole step, where layers keep samples apart."""
        apart = all(len(r.x) == len(r.y) == self.batch.rows and r.layer.segment.by_sample for r in self.layers)
        if samples >= self.batch.total or not apart:
            return self
        batch = self.batch.head(samples)
        layers = tuple(layer.head(batch.rows) for layer in self.layers)
        return replace(self, layers=layers, output=self.output[: batch.rows], batch=batch)
