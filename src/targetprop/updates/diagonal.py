r"""What has no closed form, such as the gains of a norm or a table of vectors: a factor for each number.

With ``g_s`` the gradient that drawn labels ask for, summed over the ``n`` samples of a batch, ``F = E[g_s²]/n`` is the
diagonal of the Fisher matrix, since labels are drawn independently.
"""

import torch
from torch import Tensor, nn

from targetprop.batch import Batch


class Diagonal(nn.Module):
    r"""Exponential average of ``g_s²/n``, and a momentum of what is asked.

    Args:
        shape: of the parameter.
        decay: share of the old average that each observation keeps, in [0, 1).
        damping: ``μ``, relative to the mean of the average.
        momentum: ``β``, share of the last change that is kept, in [0, 1).

    >>> diagonal = Diagonal(torch.Size([2]), decay=0.5, damping=1.0, momentum=0.0)
    >>> diagonal.observe(torch.tensor([2.0, 6.0]), Batch(4))            # F = 1, 9, its mean 5
    >>> diagonal.change(torch.tensor([1.0, 1.0]), Batch(4))             # 1 / (F/5 + 1)
    tensor([0.8333, 0.3571])
    >>> diagonal.measure(torch.tensor([1.0, 1.0]))
    tensor(10.)
    """

    average: Tensor
    momentum: Tensor
    count: Tensor

    def __init__(self, shape: torch.Size, decay: float, damping: float, momentum: float) -> None:
        """Start without observations."""
        super().__init__()
        self.decay, self.damping, self.keep = decay, damping, momentum
        self.register_buffer("average", torch.zeros(shape))
        self.register_buffer("momentum", torch.zeros(shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.long, device="cpu"))

    @torch.no_grad()
    def observe(self, gradient: Tensor, batch: Batch) -> None:
        """Add what the drawn labels of a batch ask for.

        Args:
            gradient: ``g_s``, this process' part, shape of the parameter.
            batch: which samples of the step it is of.
        """
        total = gradient.to(self.average.dtype, copy=True)
        batch.sum_([total])
        self.average.mul_(self.decay).addcmul_(total, total, value=(1 - self.decay) / batch.total)
        self.count += 1

    @torch.no_grad()
    def change(self, asked: Tensor, batch: Batch) -> Tensor:
        """Move the momentum, and divide it by the damped average.

        Args:
            asked: ascent direction of the mean over the samples, this process' part, shape of the parameter.
            batch: which samples of the step it is of.

        Returns:
            The change for the whole step, of no particular length.
        """
        total = asked.to(self.momentum.dtype, copy=True)
        batch.sum_([total])
        self.momentum.lerp_(total, 1 - self.keep)
        factor = self.average / self.average.mean().clamp_min(torch.finfo(self.average.dtype).tiny) + self.damping
        return torch.lerp(self.momentum, total, 1 - self.keep).div_(factor)

    def measure(self, change: Tensor) -> Tensor:
        """Measure a change by the average, ``Σ F C²``, a scalar; 0 where nothing was seen."""
        return (change.square() * self.average).sum() / (1 - self.decay ** max(1, int(self.count)))
