"""What may enter an engine: arguments, batches and stored states, refused by a sentence where they do not fit."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.inversion import Iteration
from targetprop.layers.sites import tensors_in
from targetprop.recipe import Method
from targetprop.settings import whole


def check_arguments(loss: object, method: object, decoders: object, seed: object) -> None:
    """Refuse arguments of a wrong kind."""
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
    reduction = getattr(loss, "reduction", "mean")
    if reduction not in ("mean", "batchmean", "sum"):
        raise ValueError(f"the loss has reduction={reduction!r}; use 'mean' or 'sum'")


def check_sweeps(method: Method, layers: int) -> None:
    """Refuse joint sweeps that end before they reach the lowest layer."""
    rule, needed = method.inversion, layers - 1
    if method.propagation == "joint" and isinstance(rule, Iteration) and rule.steps < needed:
        raise ValueError(
            f"joint sweeps reach the bottom of {layers} layers after {needed} steps, and inversion.steps"
            f" is {rule.steps}; raise it"
        )


def check_optimizer(made: object) -> None:
    """Refuse what a user's factory made, if it is no optimiser: decoders would silently not learn."""
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(f"decoder_optimizer must return an optimiser; got {type(made).__name__}")


def first_tensor(x: object, what: str) -> Tensor:
    """Find the first tensor of an input: of one, of a tuple or of a dictionary."""
    found = next(tensors_in(x), None)
    if found is None:
        raise TypeError(f"{what} must be a tensor; got {type(x).__name__}, which torch.as_tensor may make one of")
    return found


def check_batch(x: object, what: str = "the batch", *, may_be_empty: bool = False) -> None:
    """Refuse what is no batch of samples."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{what} must be a tensor; got {type(x).__name__}, which torch.as_tensor may make one of")
    if x.layout != torch.strided:
        raise ValueError(f"{what} must be a dense tensor; got the layout {x.layout}")
    if x.dim() == 0:
        raise ValueError(f"{what} must have shape (n, …); got a single number")
    if len(x) == 0 and not may_be_empty:
        raise ValueError(f"{what} is empty; drop it, or set drop_last=True in the data loader")


def check_state(state: Any, version: int, method: str) -> None:
    """Refuse a stored state of an engine that is none, of another release, or of another method."""
    if not isinstance(state, Mapping):
        raise ValueError(f"engine state must be what state_dict returned; got {type(state).__name__}")
    if state.get("version") != version:
        raise ValueError(f"engine state has version {state.get('version')!r}; this release reads {version}")
    if state["method"] != method:
        raise ValueError(f"engine state belongs to method {state['method']!r}, not {method!r}")


def check_fits(module: nn.Module, state: Any, what: str) -> None:
    """Refuse a stored state of a network with other layers, before any of it is loaded."""
    own = module.state_dict()
    if not isinstance(state, Mapping) or list(map(str, state)) != list(own):
        raise ValueError(f"engine state belongs to another network: its {what} are of other layers")
    for name, value in own.items():
        if not isinstance(state[name], Tensor) or state[name].shape != value.shape:
            raise ValueError(
                f"engine state belongs to another network: {name} of its {what} has another shape than"
                f" {tuple(value.shape)}"
            )
