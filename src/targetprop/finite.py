"""What overflowed must not be learned from: checks that gradients and activations are numbers of a usable size."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def squares_are_finite(values: Iterable[Tensor]) -> bool:
    """Say whether tensors can be squared and summed: where they can, so can an optimiser's second moments.

    Args:
        values: tensors of any shapes.

    Returns:
        False where a value is NaN or infinite, or too large for that.
    """
    norm = torch.nn.utils.get_total_norm(values)
    return bool(norm < torch.finfo(norm.dtype).max ** 0.5)


def check_digits(parameters: Iterable[nn.Parameter], what: str) -> None:
    """Refuse half precision where systems of equations are solved.

    Args:
        parameters: the parameters of a model.
        what: what solves, for the message.

    Raises:
        ValueError: one has fewer digits than float32.
    """
    for p in parameters:
        if p.is_floating_point() and torch.finfo(p.dtype).bits < 32:
            raise ValueError(
                f"{what} needs parameters in float32 or float64, and the model has {p.dtype}; keep them in float32 and"
                " compute under torch.autocast with bfloat16, or choose a method such as 'dtp'"
            )


@contextmanager
def finite_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Watch what is accumulated into ``.grad`` meanwhile; one sum over each gradient afterwards.

    Args:
        parameters: whose gradients are filled.

    Yields:
        Nothing.

    Raises:
        FloatingPointError: a gradient is NaN or infinite, or what fills it raises this error. All of them are None
            then, so that an optimiser has nothing to step on.
    """
    try:
        yield
        total = sum(p.grad.sum() for p in parameters if p.grad is not None)
        if not math.isfinite(total):
            raise FloatingPointError(
                "the gradient overflows and was dropped; scale the inputs or the loss down, or train in float64"
            )
    except FloatingPointError:
        for p in parameters:
            p.grad = None
        raise
