"""The user's loss: called as the user would call it, and what is said where it fails."""

from collections.abc import Callable, Iterable
from functools import partial
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.layers.undone import undone


def evaluate_loss(loss: Callable[[Any, Any], Any], output: Any, y: Any) -> Tensor:
    """Call a loss; a ``ValueError`` says what it does not accept, or returns instead of a scalar."""
    try:
        value = loss(output, y)
    except torch.OutOfMemoryError:
        raise
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(explain_loss(output, y, error)) from error
    return checked_loss(value)


def modules_of(loss: Callable[..., Any]) -> list[nn.Module]:
    """Find the modules that a loss is made of: itself, or those that a function or an object refers to.

    Args:
        loss: ``loss(output, y)``.

    Returns:
        The modules, and those inside of them.

    >>> criterion = nn.CrossEntropyLoss()
    >>> modules_of(lambda output, y: criterion(output, y)) == [criterion]
    True
    """
    if isinstance(loss, partial):
        parts: Iterable[Any] = (loss.func, *loss.args, *loss.keywords.values())
    elif isinstance(loss, FunctionType):
        cells = (cell.cell_contents for cell in loss.__closure__ or () if cell != CellType())
        parts = (*cells, *(loss.__globals__.get(name) for name in loss.__code__.co_names))
    else:
        parts = (loss, getattr(loss, "__self__", None), *getattr(loss, "__dict__", {}).values())
    found = [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]
    return list(dict.fromkeys(found))


class Reduction:
    """Whether a loss is a sum over samples or a mean: as it says, or as it behaves on a batch twice over.

    Args:
        loss: ``loss(output, y)``.

    >>> h, y = torch.ones(3, 2), torch.zeros(3, 2)
    >>> Reduction(lambda h, y: (h - y).square().sum()).summed(h, y), Reduction(torch.nn.MSELoss()).summed(h, y)
    (True, False)
    """

    def __init__(self, loss: Callable[[Any, Any], Any]) -> None:
        """Ask the loss."""
        said = getattr(loss, "reduction", None)
        self._loss, self._summed = loss, None if said is None else said == "sum"

    def summed(self, output: Tensor, y: Any) -> bool:
        """Say whether it is a sum, by a trial the first time if need be; what cannot be tried counts as a mean."""
        if self._summed is None:
            self._summed = self._grows(output.detach(), y)
        return self._summed

    @torch.no_grad()
    def _grows(self, output: Tensor, y: Any) -> bool:
        if not isinstance(y, Tensor) or y.dim() == 0 or len(y) != len(output):
            return False
        try:
            with undone(modules_of(self._loss)):
                once, twice = (float(self._loss(torch.cat([output] * k), torch.cat([y] * k))) for k in (1, 2))
        except (IndexError, RuntimeError, TypeError, ValueError):
            return False
        return abs(twice) > 1.5 * abs(once)


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
