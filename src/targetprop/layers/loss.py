"""The user's loss: called as the user would call it, and what is said where it fails."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def evaluate_loss(loss: Callable[[Any, Any], Any], output: Any, y: Any) -> Tensor:
    """Call a loss; a ``ValueError`` says what it does not accept, or returns instead of a scalar."""
    try:
        value = loss(output, y)
    except torch.OutOfMemoryError:
        raise
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(explain_loss(output, y, error)) from error
    return checked_loss(value)


def checked_loss(value: Any) -> Tensor:
    """Refuse what is no scalar."""
    if not isinstance(value, Tensor):
        raise ValueError(f"the loss returns {type(value).__name__}; it must be a tensor, made from the output")
    if value.dim() != 0:
        raise ValueError(
            f"the loss has shape {tuple(value.shape)}; it must be one number: use reduction='mean' or 'sum'"
        )
    return value


def explain_loss(output: Any, y: Any, error: Exception) -> str:
    """Say what a loss was given when it fails."""
    labels = isinstance(y, Tensor) and not y.is_floating_point() and y.dim() == 1 and not y.is_meta
    if labels and isinstance(output, Tensor) and output.dim() == 2 and len(y):
        low, high, classes = int(y.min()), int(y.max()), output.shape[1]
        if low < 0 or high >= classes:
            return f"labels must lie in 0…{classes - 1}, one per network output; got {low}…{high}"
    kinds = [f"shape {tuple(t.shape)}" if isinstance(t, Tensor) else f"type {type(t).__name__}" for t in (output, y)]
    return f"the loss does not accept an output of {kinds[0]} with y of {kinds[1]}: {error}"
