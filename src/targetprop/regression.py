"""Running second moments and their Cholesky factor, shared by the least-squares update and ridge decoders."""

import torch
from torch import Tensor, nn


class Covariance(nn.Module):
    r"""Exponential average of ``a aᵀ`` with bias correction, factorised only every few solves.

    Args:
        width: length of ``a``.
        decay: share of the old average that each observation keeps, in [0, 1).
        damping: ``μ``, relative to the mean of the diagonal.
        every: how many solves one factorisation serves.

    >>> c = Covariance(2, decay=0.5, damping=0.0, every=1).double()
    >>> a = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    >>> c.observe(a)
    >>> c.solve(torch.eye(2, dtype=torch.float64)).diagonal()      # (mean of a aᵀ)⁻¹
    tensor([2.0000, 0.5000], dtype=torch.float64)
    """

    average: Tensor
    factor: Tensor
    count: Tensor

    def __init__(self, width: int, decay: float, damping: float, every: int) -> None:
        """Start without observations."""
        super().__init__()
        self.decay, self.damping, self.every = decay, damping, every
        self.register_buffer("average", torch.zeros(width, width))
        self.register_buffer("factor", torch.eye(width))
        self.register_buffer("count", torch.zeros((), dtype=torch.long, device="cpu"))

    @torch.no_grad()
    def observe(self, a: Tensor) -> None:
        """Add a batch.

        Args:
            a: rows, shape ``(n, width)``.
        """
        a = a.to(self.average.dtype)  # under autocast activations have fewer digits
        self.average.mul_(self.decay).addmm_(a.T, a, alpha=(1 - self.decay) / len(a))
        self.count += 1

    @torch.no_grad()
    def solve(self, rhs: Tensor) -> Tensor:
        """Solve with the damped covariance from the right.

        Args:
            rhs: shape ``(k, width)``.

        Returns:
            ``rhs (A + μ I)⁻¹``, shape ``(k, width)``.
        """
        if (int(self.count) - 1) % self.every == 0:
            corrected = self.average / (1 - self.decay ** int(self.count))
            diagonal = corrected.diagonal().mean()
            floor = self.damping + len(corrected) * torch.finfo(corrected.dtype).eps
            corrected.diagonal().add_(floor * diagonal + torch.finfo(corrected.dtype).tiny)
            factor, info = torch.linalg.cholesky_ex(corrected)
            # A failed factorisation keeps the last good one.
            self.factor.copy_(torch.where(info == 0, factor, self.factor))
        return torch.cholesky_solve(rhs.T.to(self.factor.dtype), self.factor).T
