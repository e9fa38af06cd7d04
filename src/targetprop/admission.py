"""What may enter the engine: arguments and batches, refused by a sentence where they do not fit the model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.chain import Chain
from targetprop.forward import Record
from targetprop.methods import Method
from targetprop.placement import Placement
from targetprop.settings import whole


def check_arguments(loss: object, method: object, decoders: object, seed: object) -> None:
    """Refuse arguments of a wrong kind.

    Args:
        loss: to be a callable.
        method: to be a `Method`.
        decoders: to be a mapping to modules, or None.
        seed: to be a whole number, or None.

    Raises:
        TypeError: one is none.
    """
    if not callable(loss):
        raise TypeError(f"the loss must be a function of output and labels; got {type(loss).__name__}")
    if not isinstance(method, Method):
        raise TypeError(f"the method must be a name or a Method; got {type(method).__name__}")
    if decoders is not None and not (
        isinstance(decoders, Mapping) and all(isinstance(made, nn.Module) for made in decoders.values())
    ):
        raise TypeError("decoders must be a dictionary of modules by layer name")
    if seed is not None and not whole(seed):
        raise TypeError(f"the seed must be a whole number or None; got {seed!r}")


def check_optimizer(made: object) -> None:
    """Refuse what a user's factory made, if it is no optimiser: decoders would silently not learn.

    Args:
        made: what it returned.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(f"decoder_optimizer must return an optimiser; got {type(made).__name__}")


def check_placement(placement: object, method: Method) -> None:
    """Refuse to spread a method over processes whose layers need each other.

    Args:
        placement: to be a `Placement`, or None.
        method: the method.

    Raises:
        TypeError: it is none.
        ValueError: the method is not local.
    """
    if placement is None:
        return
    if not isinstance(placement, Placement):
        raise TypeError(f"the placement must be a Placement; got {type(placement).__name__}")
    if method.propagation not in ("layerwise", "joint") or not method.decoder.local:
        raise ValueError(
            f"method {method.name!r} cannot be spread over processes by layer: its propagation {method.propagation!r}"
            f" with decoder {method.decoder.name!r} needs other layers; choose 'layerwise' or 'joint' and a decoder"
            " that learns from its own layer"
        )


def check_batch(x: object, what: str = "the batch", *, may_be_empty: bool = False) -> None:
    """Refuse what is no batch of samples.

    Args:
        x: to be a tensor of shape ``(n, …)`` with ``n ≥ 1``.
        what: its name, for the message.
        may_be_empty: whether ``n = 0`` is fine, as other ranks hold the batch.

    Raises:
        TypeError: it is no tensor.
        ValueError: it holds no sample, or is sparse or nested.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{what} must be a tensor; got {type(x).__name__}, which torch.as_tensor may make one of")
    if x.layout != torch.strided:
        raise ValueError(f"{what} must be a dense tensor; got the layout {x.layout}")
    if x.dim() == 0:
        raise ValueError(f"{what} must have shape (n, …); got a single number")
    if len(x) == 0 and not may_be_empty:
        raise ValueError(f"{what} is empty; drop it, or set drop_last=True in the data loader")


def place(chain: Chain) -> tuple[torch.device, torch.dtype]:
    """Say where a model is and in which precision, by its first parameter.

    Args:
        chain: the layers.

    Returns:
        Device and type.
    """
    first = next(p for layer in chain.layers for module in layer.modules for p in module.parameters())
    return first.device, first.dtype


def check_place(x: Tensor, now: tuple[torch.device, torch.dtype], built: tuple[torch.device, torch.dtype]) -> None:
    """Refuse a batch on another device than the model's, and a model that has left its decoders.

    Args:
        x: the batch.
        now: what `place` says.
        built: what it said when the engine was built.

    Raises:
        ValueError: one is elsewhere.
    """
    if now[0].type == "meta":
        raise ValueError("the model is on the meta device and holds no numbers; materialise it first")
    if now != built:
        raise ValueError(
            f"the model is {_kind(now[1])} on {now[0]} now, and its decoders are {_kind(built[1])} on {built[0]}; build"
            " the engine after moving or converting the model"
        )
    if x.device != now[0]:
        raise ValueError(f"the input is on {x.device} and the model on {now[0]}; move one of them")


@contextmanager
def explained(x: Tensor, now: tuple[torch.device, torch.dtype], what: str = "an input") -> Iterator[None]:
    """Say what a model was given when its forward pass fails.

    Args:
        x: the input.
        now: what `place` says of the model.
        what: the input's name, for the message.

    Yields:
        Nothing.

    Raises:
        ValueError: it failed, other than for want of memory.
        OutOfMemoryError: it failed for that.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as error:
        given = f"{what} of shape {tuple(x.shape)} and type {_kind(x.dtype)}"
        raise ValueError(f"the model, {_kind(now[1])}, does not accept {given}: {error}") from error


def check_samples(record: Record, n: int) -> None:
    """Refuse a forward pass in which the first dimension is not that of the samples.

    Args:
        record: the forward pass.
        n: how many samples went in.

    Raises:
        ValueError: a layer's output is not of shape ``(n, …)``.
    """
    for layer in record.layers:
        if layer.y.dim() < 2 or len(layer.y) != n:
            raise ValueError(
                f"layer {layer.layer.name} returns shape {tuple(layer.y.shape)} for {n} samples; inputs and outputs"
                " must be of shape (n, …)"
            )


def check_fits(module: nn.Module, state: Any, what: str) -> None:
    """Refuse a stored state of a network with other layers, before any of it is loaded.

    Args:
        module: what is to be restored.
        state: its state dictionary.
        what: what it is, for the message.

    Raises:
        ValueError: names or shapes differ.
    """
    own = module.state_dict()
    if not isinstance(state, Mapping) or list(map(str, state)) != list(own):
        raise ValueError(f"engine state belongs to another network: its {what} are of other layers")
    for name, value in own.items():
        if not isinstance(state[name], Tensor) or state[name].shape != value.shape:
            raise ValueError(
                f"engine state belongs to another network: {name} of its {what} has another shape than"
                f" {tuple(value.shape)}"
            )


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
