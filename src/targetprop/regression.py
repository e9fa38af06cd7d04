"""Running second moments and their Cholesky factor, shared by the least-squares update and ridge decoders."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from targetprop.batch import Batch


@dataclass(frozen=True, eq=False)
class Moments:
    """A running covariance after one more batch.

    Attributes:
        average: exponential average of ``a aᵀ``, not yet corrected for its start at zero, shape ``(width, width)``.
        factor: Cholesky factor of the damped covariance, as old as the settings allow.
        count: batches seen.
        rows: rows of the last batch.
    """

    average: Tensor
    factor: Tensor
    count: int
    rows: int

    def solve(self, rhs: Tensor) -> Tensor:
        """Solve with the damped covariance from the right.

        Args:
            rhs: shape ``(k, width)``.

        Returns:
            ``rhs (A + (μ + κ d/n) m I)⁻¹`` with ``m`` the mean of the diagonal, shape ``(k, width)``.
        """
        return torch.cholesky_solve(rhs.T.to(self.factor.dtype), self.factor).T


class Covariance(nn.Module):
    r"""Exponential average of ``a aᵀ`` with bias correction, factorised only every few batches.

    The damping is ``μ + κ d/n``, relative to the mean of the diagonal, with ``d`` the width and ``n = (Σ w)²/Σ w²`` the
    rows that the average is worth: a regression on hardly more rows than it has unknowns fits their noise, and what it
    predicts for the next batch is many times too large.

    Args:
        width: length of ``a``.
        decay: share of the old average that each batch keeps, in [0, 1).
        damping: ``μ``, what the damping falls to with many rows.
        every: how many batches one factorisation serves.
        shrinkage: ``κ``, its part for few rows.

    >>> c = Covariance(2, decay=0.5, damping=0.0, every=1).double()
    >>> a = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    >>> c.observe(a, Batch(2)).solve(torch.eye(2, dtype=torch.float64)).diagonal()      # (mean of a aᵀ)⁻¹
    tensor([2.0000, 0.5000], dtype=torch.float64)
    """

    average: Tensor
    factor: Tensor
    count: Tensor

    def __init__(self, width: int, decay: float, damping: float, every: int, shrinkage: float = 0.0) -> None:
        """Start without observations."""
        super().__init__()
        self.decay, self.damping, self.every, self.shrinkage = decay, damping, every, shrinkage
        self.register_buffer("average", torch.zeros(width, width))
        self.register_buffer("factor", torch.eye(width))
        self.register_buffer("count", torch.zeros((), dtype=torch.long, device="cpu"))

    @torch.no_grad()
    def observe(self, a: Tensor, batch: Batch, *, keep: bool = False) -> Moments:
        """Say what the moments are after a batch.

        Args:
            a: rows, shape ``(r, width)``, small enough to be squared: who calls has looked (`targetprop.finite`).
            batch: which samples of the step they belong to.
            keep: take the moments over at once, which saves the memory of a second average.

        Returns:
            The moments, to be solved with and, if that was not asked for, to be kept.
        """
        a = a.to(self.average.dtype)  # under autocast activations have fewer digits
        average, rows = batch.move_average(self.average, a, a, self.decay, out=self.average if keep else None)
        count = int(self.count) + 1
        factor = self._factorise(average, count, rows) if (count - 1) % self.every == 0 else self.factor
        moments = Moments(average, factor, count, rows)
        if keep:
            self.keep(moments)
        return moments

    @torch.no_grad()
    def keep(self, moments: Moments) -> None:
        """Take the moments over."""
        self.average, self.factor = moments.average, moments.factor
        self.count.fill_(moments.count)

    def _factorise(self, average: Tensor, count: int, rows: int) -> Tensor:
        kept = self.decay**count
        worth = rows * (1 - kept) * (1 + self.decay) / ((1 + kept) * (1 - self.decay))
        corrected = average / (1 - kept)
        diagonal = corrected.diagonal().mean()
        width, rounding = len(corrected), torch.finfo(corrected.dtype)
        floor = self.damping + width * (self.shrinkage / worth + rounding.eps)
        corrected.diagonal().add_(floor * diagonal + rounding.tiny)
        factor, info = torch.linalg.cholesky_ex(corrected)
        return torch.where(info == 0, factor, self.factor)  # a failed factorisation leaves the last good one
