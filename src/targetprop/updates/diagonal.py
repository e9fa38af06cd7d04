r"""Parameters without a closed form, such as gains of norms and tables of vectors: a scale for each number.

    ``m ← β m + (1 − β) g``,  ``v ← γ v + (1 − γ) g²``,  ``Δθ = ρ m̂ / √v̂``

with ``g`` what the targets ask for, as in Adam (Kingma & Ba 2015, arXiv:1412.6980): at most about ``ρ`` for each
number, whatever the units of the loss.
"""

import torch
from torch import Tensor, nn

from targetprop.batch import Batch

_DECAY = 0.99  # γ


class Diagonal(nn.Module):
    r"""What is remembered of one parameter.

    Args:
        shape: of the parameter.

    >>> diagonal = Diagonal(torch.Size([2]))
    >>> diagonal.change(torch.tensor([3.0, -5.0]), 0.9, Batch(1))
    tensor([ 1.0000, -1.0000])
    """

    average: Tensor
    momentum: Tensor
    steps: Tensor

    def __init__(self, shape: torch.Size) -> None:
        """Start without observations."""
        super().__init__()
        self.register_buffer("average", torch.zeros(shape))
        self.register_buffer("momentum", torch.zeros(shape))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long, device="cpu"))

    @torch.no_grad()
    def change(self, asked: Tensor, share: float, batch: Batch) -> Tensor:
        """Move both averages, and divide one by the root of the other.

        Args:
            asked: ``g``, this process' part, shape of the parameter.
            share: ``β``, share of the old momentum that is kept.
            batch: which samples of the step it is of.

        Returns:
            ``Δθ/ρ`` for the whole step; 0 where nothing was ever asked.
        """
        total = asked.to(self.momentum.dtype, copy=True)
        batch.sum_([total])
        step = int(self.steps)
        self.steps.add_(1)
        self.average.mul_(_DECAY).addcmul_(total, total, value=1 - _DECAY)
        mean = averaged(self.momentum, total, share, step)
        root = (self.average / (1 - _DECAY ** (step + 1))).sqrt_()
        return torch.where(mean == 0, mean, mean / root)


def averaged(momentum: Tensor, newest: Tensor, share: float, step: int, scale: float | Tensor = 1.0) -> Tensor:
    """Move a momentum in place, and give it with one more share of the newest part, after Nesterov.

    Args:
        momentum: the average so far, zero at first.
        newest: what this step asks for; its memory is taken for the outcome.
        share: ``β``, share of the old average that is kept.
        step: steps before this one; what the average lacks for its start at zero is made up for.
        scale: what the outcome is multiplied by.

    Returns:
        The average for this step.
    """
    momentum.lerp_(newest, 1 - share)
    ratio = share / ((1 - share) * (1 - share ** (step + 1)))
    return newest.add_(momentum, alpha=ratio).mul_((1 - share) * scale)  # few passes over large matrices
