"""What a case is, and the data and losses that many cases share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A model as people write it, with a batch and a loss.

    Attributes:
        name: Unique among all cases.
        make: Build the model; torch's global seed decides its weights.
        inputs: The same float32 or integer batch at every call: a tensor, a tuple of positional inputs or a dict of
            keyword inputs. The caller casts floating inputs.
        labels: What the loss compares with, never in need of a cast; None where the model computes its own loss.
        loss: The scalar of the model's output and the labels, a mean over the batch.
        train: Whether the model runs in training mode.
        about: What is special.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    labels: Callable[[], Any]
    loss: Callable[[Any, Any], Tensor]
    train: bool = True
    about: str = ""


def floats(*shape: int, seed: int = 1) -> Tensor:
    """Draw a normal float32 tensor from a seed of its own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(high: int, *shape: int, seed: int = 2) -> Tensor:
    """Draw integers below `high` (classes or tokens) from a seed of its own."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def none() -> None:
    """Stand for the labels of a model that computes its own loss."""


def token_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of (n, T, classes) with (n, T), a mean over all positions."""
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def squared_error(out: Tensor, y: Tensor) -> Tensor:
    """Mean squared error in the output's own precision."""
    return F.mse_loss(out, y.to(out.dtype))
