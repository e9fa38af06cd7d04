"""Whether a model accepts an input: where both are, and what is said where its forward pass fails."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from targetprop.layers.network import Network

Whereabouts = tuple[torch.device, torch.dtype]


def whereabouts(network: Network) -> Whereabouts:
    """Say where a model is and in which precision, by its first parameter."""
    first = next((p for module in network.modules() for p in module.parameters()), None)
    if first is None:
        raise ValueError("the model has no trainable parameter; give it layers to train")
    return first.device, first.dtype


def check_whereabouts(x: Tensor, now: Whereabouts, built: Whereabouts) -> None:
    """Refuse a batch on another device than the model's, and a model that has left its decoders."""
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
def explained(
    x: Tensor,
    now: Whereabouts,
    what: str | None = None,
    errors: tuple[type[Exception], ...] = (RuntimeError, IndexError, TypeError),
) -> Iterator[None]:
    """Say what a model was given when its forward pass fails."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except errors as error:
        given = what or f"an input of shape {tuple(x.shape)}"
        raise ValueError(
            f"the model, {_kind(now[1])}, does not accept {given} and type {_kind(x.dtype)}: {error}"
        ) from error


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
