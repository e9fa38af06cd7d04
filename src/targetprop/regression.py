"""Running second moments and their Cholesky factor, shared by the least-squares update and ridge decoders."""

import torch
from torch import Tensor, nn

from targetprop.share import Share


class Covariance(nn.Module):
    r"""Exponential average of ``a aᵀ`` with bias correction, factorised only every few solves.

    The damping is ``μ + κ d/n``, relative to the mean of the diagonal, with ``d`` the width and ``n = (Σ w)²/Σ w²`` the
    rows that the average is worth: a regression on hardly more rows than it has unknowns fits their noise, and what it
    predicts for the next batch is many times too large.

    Args:
        width: length of ``a``.
        decay: share of the old average that each observation keeps, in [0, 1).
        damping: ``μ``, what the damping falls to with many rows.
        every: how many solves one factorisation serves.
        shrinkage: ``κ``, its part for few rows.

    >>> c = Covariance(2, decay=0.5, damping=0.0, every=1).double()
    >>> a = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    >>> c.observe(a)
    >>> c.solve(torch.eye(2, dtype=torch.float64)).diagonal()      # (mean of a aᵀ)⁻¹
    tensor([2.0000, 0.5000], dtype=torch.float64)
    """

    average: Tensor
    factor: Tensor
    count: Tensor

    def __init__(self, width: int, decay: float, damping: float, every: int, shrinkage: float = 0.0) -> None:
        """Start without observations."""
        super().__init__()
        self.decay, self.damping, self.every, self.shrinkage = decay, damping, every, shrinkage
        self.rows = 1
        self.register_buffer("average", torch.zeros(width, width))
        self.register_buffer("factor", torch.eye(width))
        self.register_buffer("count", torch.zeros((), dtype=torch.long, device="cpu"))

    @torch.no_grad()
    def observe(self, a: Tensor, share: Share | None = None) -> None:
        """Add a batch.

        Args:
            a: rows, shape ``(n, width)``, small enough to be squared: who calls has looked (`targetprop.guard`).
            share: which rows of a larger batch these are; all of it if None.
        """
        share = Share.of(len(a)) if share is None else share
        a = a.to(self.average.dtype)  # under autocast activations have fewer digits
        share.add_product_(self.average, a, a, self.decay)
        self.count += 1
        self.rows = share.total

    def worth(self) -> float:
        """Count the rows that the average is worth: ``n (1 − ρᵗ)(1 + ρ) / ((1 + ρᵗ)(1 − ρ))`` of batches of ``n``.

        Returns:
            The number.
        """
        kept = self.decay ** int(self.count)
        return self.rows * (1 - kept) * (1 + self.decay) / ((1 + kept) * (1 - self.decay))

    @torch.no_grad()
    def solve(self, rhs: Tensor) -> Tensor:
        """Solve with the damped covariance from the right.

        Args:
            rhs: shape ``(k, width)``.

        Returns:
            ``rhs (A + (μ + κ d/n) m I)⁻¹`` with ``m`` the mean of the diagonal, shape ``(k, width)``.
        """
        if (int(self.count) - 1) % self.every == 0:
            corrected = self.average / (1 - self.decay ** int(self.count))
            diagonal = corrected.diagonal().mean()
            width, rounding = len(corrected), torch.finfo(corrected.dtype)
            floor = self.damping + width * (self.shrinkage / self.worth() + rounding.eps)
            corrected.diagonal().add_(floor * diagonal + rounding.tiny)
            factor, info = torch.linalg.cholesky_ex(corrected)
            # A failed factorisation keeps the last good one.
            self.factor.copy_(torch.where(info == 0, factor, self.factor))
        return torch.cholesky_solve(rhs.T.to(self.factor.dtype), self.factor).T
