"""What overflowed must not be learned from: checks that gradients and activations are numbers of a usable size."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from targetprop.ranks import Ranks


def squares_are_finite(values: Iterable[Tensor], ranks: Ranks) -> bool:
    """Say whether tensors can be squared and summed: where they can, so can an optimiser's second moments.

    Args:
        values: tensors of any shapes.
        ranks: the processes that hold them, which all hear the same.

    Returns:
        False where a value is NaN or infinite, or too large for that.
    """
    norm = torch.nn.utils.get_total_norm(values)
    ranks.sum_([norm])
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
