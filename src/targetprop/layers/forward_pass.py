"""One forward pass, cut between layers, into a record that the later stages read.

Each layer sees a detached ``h_{l-1}``, so the autograd graph of ``h_l`` reaches only its own ``θ_l``. What a layer drew
or measured on the way (dropout masks, batch statistics) is kept as *replay state*, and `LayerRecord.f` repeats the
layer with it: inverting a layer means inverting the very function that was applied.

>>> import torch
>>> from torch import nn
>>> from targetprop.layers.chain import build_chain
>>> record = run_forward(build_chain(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))), torch.ones(4, 3))
>>> layer = record.layers[0]
>>> bool((layer.f(layer.x) == layer.h).all())     # the same mask again
True
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]

from targetprop.layers.accepts import explained, whereabouts
from targetprop.layers.chain import Chain, Layer, visible
from targetprop.layers.network import Layered
from targetprop.layers.record import LayerRecord, Record
from targetprop.layers.replay import has_replay, record_modules
from targetprop.peers import Peers


def run_forward(
    chain: Chain, x: Tensor, peers: Peers | None = None, *, keep_inner: bool = False, what: str | None = None
) -> Record:
    """Run a chain once, detached between layers.

    Args:
        chain: the layers.
        x: input ``h_0`` of shape ``(n, …)``.
        peers: the processes that share samples or layers; this one alone if None.
        keep_inner: keep the outputs of the modules inside each layer too.
        what: what the input is called in messages, with its shape.

    Returns:
        The record.

    What the model does not accept, and modules that cannot be layers, are a ``ValueError`` or a ``TypeError``.
    """
    peers = Peers() if peers is None else peers
    batch, own = peers.batch(len(x)), peers.own(len(chain))
    with explained(x, whereabouts(chain), what, (RuntimeError, IndexError)):  # a TypeError names its layer
        h, records = peers.receive_input(x.detach()), []
        for layer in chain.layers[own.start : own.stop]:
            records.append(_run_layer(layer, h, keep_inner))
            h = records[-1].h
        return Record(tuple(records), peers.send_output(h), batch, own.start == 0)


def _run_layer(layer: Layer, h: Tensor, keep_inner: bool) -> LayerRecord:
    for module in layer.modules:
        check_repeatable(layer, module)
    try:
        inner, states = record_modules(layer.modules, h)
    except TypeError as error:
        problem = f"layer {layer.name}: {error}; wrap it in a module that takes one tensor and returns one tensor"
        raise TypeError(problem) from error
    except ValueError as error:
        raise ValueError(f"layer {layer.name}: {error}") from error
    y = inner[-1] if inner else h
    if y.dim() < 2 or len(y) != len(h):
        raise ValueError(
            f"layer {layer.name} returns shape {tuple(y.shape)} for {len(h)} samples; inputs and outputs must be of"
            " shape (n, …)"
        )
    return LayerRecord(layer, h, y, states, inner if keep_inner else ())


@contextmanager
def evaluating(chain: Layered) -> Iterator[None]:
    """Set every module to eval mode for a while: what runs meanwhile changes no statistics.

    Args:
        chain: the layers.

    Yields:
        Nothing.
    """
    modes = [(module, module.training) for module in chain.modules()]
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
