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

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]

from targetprop.chain import Chain, Layer


@dataclass(frozen=True)
class Side:
    """What one module drew or measured in the forward pass.

    Attributes:
        per_sample: tensors of shape ``(n, …)``, such as a dropout mask.
        shared: tensors that all samples share, such as batch statistics.
    """

    per_sample: tuple[Tensor, ...] = ()
    shared: tuple[Tensor, ...] = ()


Recorder = Callable[[nn.Module, Tensor], tuple[Tensor, Side]]
Replayer = Callable[[nn.Module, Tensor, Side], Tensor]
_NOTHING = Side()
_RULES: dict[type[nn.Module], tuple[Recorder, Replayer]] = {}


def register_replay(kind: type[nn.Module], record: Recorder, replay: Replayer) -> None:
    """Teach the library to repeat a module whose output is not a function of its input alone.

    Args:
        kind: the module class; subclasses follow it.
        record: ``(module, x) -> (y, side)``, called once a step.
        replay: ``(module, x, side) -> y``, the same function again, sample by sample.

    Raises:
        ValueError: the class has a rule already.
    """
    if kind in _RULES:
        raise ValueError(f"{kind.__name__} has a replay rule already")
    _RULES[kind] = (record, replay)


def _rule(module: nn.Module) -> tuple[Recorder, Replayer] | None:
    return next((_RULES[kind] for kind in type(module).__mro__ if kind in _RULES), None)


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """What the forward pass left of one layer.

    Attributes:
        layer: the layer.
        x: its input ``h_{l-1}``, shape ``(n, …)``, detached.
        y: its output ``h_l`` with the graph of ``θ_l``, shape ``(n, …)``.
        sides: side data, one per module of the layer.
        inner: outputs of the layer's modules with their graph, one per module; empty unless asked for.
    """

    layer: Layer
    x: Tensor
    y: Tensor
    sides: tuple[Side, ...]
    inner: tuple[Tensor, ...] = ()

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
        for module, side in zip(self.layer.modules, self.sides, strict=True):
            rule = None if side is _NOTHING else _rule(module)
            x = module(x) if rule is None else rule[1](module, x, side)
        return x

    def head(self, rows: int) -> "LayerRecord":
        """Restrict the record to its first samples.

        Args:
            rows: how many samples to keep.

        Returns:
            The same record on ``rows`` samples, without graph.
        """
        if rows >= len(self.x):
            return self
        sides = tuple(s if s is _NOTHING else Side(tuple(t[:rows] for t in s.per_sample), s.shared) for s in self.sides)
        return replace(self, x=self.x[:rows], y=self.h[:rows], sides=sides, inner=())


@dataclass(frozen=True, eq=False)
class Record:
    """The forward pass of a whole chain.

    Attributes:
        layers: one record per layer, in forward order.
    """

    layers: tuple[LayerRecord, ...]

    @property
    def output(self) -> Tensor:
        """The network's output ``h_L``, detached, shape ``(n, …)``."""
        return self.layers[-1].h

    def head(self, rows: int) -> "Record":
        """Restrict the record to its first ``rows`` samples.

        Args:
            rows: how many samples to keep.

        Returns:
            The restricted record.
        """
        return self if rows >= len(self.layers[0].x) else Record(tuple(layer.head(rows) for layer in self.layers))


def run_forward(chain: Chain, x: Tensor, *, keep_inner: bool = False) -> Record:
    """Run a chain once, detached between layers.

    Args:
        chain: the layers.
        x: input ``h_0`` of shape ``(n, …)``.
        keep_inner: keep the outputs of the modules inside each layer too.

    Returns:
        The record.

    Raises:
        TypeError: a module returned something that is not a tensor.
    """
    records: list[LayerRecord] = []
    h = x.detach()
    for layer in chain.layers:
        start, sides, inner = h, [], []
        for module in layer.modules:
            rule = _rule(module)
            if rule is None:
                _check_repeatable(layer, module)
            h, side = (module(h), _NOTHING) if rule is None else rule[0](module, h)
            if not isinstance(h, Tensor):
                raise TypeError(
                    f"layer {layer.name}: {type(module).__name__} returned {type(h).__name__}; wrap it in a module that"
                    " returns one tensor"
                )
            sides.append(side)
            inner.append(h)
        records.append(LayerRecord(layer, start, h, tuple(sides), tuple(inner) if keep_inner else ()))
        h = h.detach()
    return Record(tuple(records))


def _check_repeatable(layer: Layer, module: nn.Module) -> None:
    """Refuse a module that hides one whose masks or batch statistics could not be repeated.

    Raises:
        ValueError: it does.
    """
    for inner in module.modules():
        if inner.training and isinstance(inner, (_DropoutNd, _BatchNorm)):
            raise ValueError(
                f"layer {layer.name}: {type(module).__name__} holds {type(inner).__name__}, whose masks or statistics"
                " cannot be repeated from outside; make its modules a layer's own in an nn.Sequential, call its eval(),"
                " or tell how to repeat it with targetprop.register_replay"
            )


def _record_dropout(module: nn.Module, x: Tensor) -> tuple[Tensor, Side]:
    if not module.training:
        return module(x), _NOTHING
    mask = module(torch.ones_like(x))  # draws what the module itself would draw
    return x * mask, Side(per_sample=(mask,))


def _record_batch_norm(module: nn.Module, x: Tensor) -> tuple[Tensor, Side]:
    assert isinstance(module, _BatchNorm)
    if not module.training and module.running_mean is not None:
        return module(x), _NOTHING
    axes = [d for d in range(x.dim()) if d != 1]
    with torch.no_grad():
        variance, mean = torch.var_mean(x, dim=axes, correction=0)
    return module(x), Side(shared=(mean, variance))


def _replay_batch_norm(module: nn.Module, x: Tensor, side: Side) -> Tensor:
    assert isinstance(module, _BatchNorm)
    mean, variance = side.shared
    return functional.batch_norm(x, mean, variance, module.weight, module.bias, training=False, eps=module.eps)


register_replay(_DropoutNd, _record_dropout, lambda module, x, side: x * side.per_sample[0])
register_replay(_BatchNorm, _record_batch_norm, _replay_batch_norm)
