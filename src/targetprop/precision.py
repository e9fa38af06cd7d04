"""Half precision: where it may round, and where nothing of a small difference would be left."""

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_NOTHING = nullcontext()  # an autocast context, even one that does nothing, costs as much as a small product


def at_least_float32(x: Tensor) -> Tensor:
    """Give half precision the digits that statistics and differences need."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def is_cast(x: Tensor) -> bool:
    """Say whether autocast is on where a tensor lives, and products round to half precision."""
    return torch.is_autocast_enabled(x.device.type)


def warn_if_unscaled(x: Tensor) -> None:
    """Warn that gradients are not scaled where autocast rounds to float16, whose users scale the loss."""
    if is_cast(x) and torch.get_autocast_dtype(x.device.type) == torch.float16:
        warnings.warn(
            "the engine does not scale gradients: leave torch.amp.GradScaler out, or use autocast with bfloat16",
            stacklevel=3,
        )


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Make the context in which no operation is cast to half precision."""
    return torch.autocast(x.device.type, enabled=False) if is_cast(x) else _NOTHING
