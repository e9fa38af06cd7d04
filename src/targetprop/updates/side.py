"""One side of a linear map: a running second moment and its damped inverse, the factor of that side."""

import torch
from torch import Tensor, nn

from targetprop.batch import Batch


class Side(nn.Module):
    r"""Exponential average of ``v vᵀ`` over rows, and ``(E[v vᵀ]/m + (μ + κ d/n) I)⁻¹``, ``m`` its mean diagonal.

    ``n`` is the number of independent rows that the average is worth: an average of few is damped more.

    Args:
        width: ``d``, length of ``v``.
        decay: share of the old average that each batch keeps, in [0, 1).
        damping: ``μ``.
        shrinkage: ``κ``.
        diagonal: keep the diagonal alone.

    >>> side = Side(2, decay=0.5, damping=0.0, shrinkage=0.0, diagonal=False)
    >>> side.observe(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), Batch(2))
    >>> side.refresh()
    >>> side.solve(torch.eye(2)).diagonal()                # m = 2.5
    tensor([5.0000, 0.5556])
    """

    average: Tensor
    inverse: Tensor
    count: Tensor
    rows: Tensor

    def __init__(self, width: int, decay: float, damping: float, shrinkage: float, *, diagonal: bool) -> None:
        """Start without observations."""
        super().__init__()
        self.decay, self.damping, self.shrinkage, self.diagonal = decay, damping, shrinkage, diagonal
        self.register_buffer("average", torch.zeros(width) if diagonal else torch.zeros(width, width))
        self.register_buffer("inverse", torch.ones(width) if diagonal else torch.eye(width))
        self.register_buffer("count", torch.zeros((), dtype=torch.long, device="cpu"))
        self.register_buffer("rows", torch.zeros((), dtype=torch.long, device="cpu"))

    @torch.no_grad()
    def observe(self, v: Tensor, batch: Batch, independent: int | None = None) -> None:
        """Add a batch.

        Args:
            v: rows of the samples held here, shape ``(r, d)``.
            batch: which samples of the step they belong to.
            independent: how many rows of the whole step are independent of each other; all if None.
        """
        v = v.to(self.average.dtype)  # under autocast activations have fewer digits
        if self.diagonal:
            ones = torch.ones_like(v[:, :1])
            _, rows = batch.move_average(self.average.unsqueeze(0), ones, v.square(), self.decay, self.average[None])
        else:
            _, rows = batch.move_average(self.average, v, v, self.decay, self.average)
        self.count.add_(1)
        self.rows.fill_(rows if independent is None else independent)

    @property
    def cost(self) -> int:
        """How many multiplications `solve` takes for a row."""
        return self.inverse.numel()

    @property
    def moment(self) -> Tensor:
        """The average, corrected for its start at zero."""
        return self.average / (1 - self.decay ** int(self.count))

    def total_damping(self) -> float:
        """Compute ``μ + κ d/n``, and what covers rounding."""
        kept, width = self.decay ** int(self.count), len(self.average)
        worth = int(self.rows) * (1 - kept) * (1 + self.decay) / ((1 + kept) * (1 - self.decay))
        return self.damping + width * (self.shrinkage / worth + torch.finfo(self.average.dtype).eps)

    @torch.no_grad()
    def refresh(self) -> None:
        """Invert anew; where nothing was seen or rounding leaves the average indefinite, the last inverse stays."""
        if not int(self.count):
            return
        moment, rounding = self.moment, torch.finfo(self.average.dtype)
        diagonal = moment if self.diagonal else moment.diagonal()
        moment.div_(diagonal.mean() + rounding.tiny)
        diagonal.add_(self.total_damping())
        if self.diagonal:
            self.inverse.copy_(1 / diagonal)
            return
        factor, info = torch.linalg.cholesky_ex(moment)
        if int(info) == 0:
            self.inverse.copy_(torch.cholesky_inverse(factor))

    def solve(self, v: Tensor) -> Tensor:
        """Apply the inverse to rows.

        Args:
            v: shape ``(r, d)``.

        Returns:
            Shape ``(r, d)``.
        """
        return v * self.inverse if self.diagonal else v @ self.inverse
