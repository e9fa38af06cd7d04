"""A side of which the leading directions are told apart, and all others are treated alike."""

import torch
from torch import Tensor

from targetprop.updates.side import Side


class Leading(Side):
    r"""``(V Λ Vᵀ + τ (I − V Vᵀ) + μ I)⁻¹`` in place of the inverse of the whole moment.

    ``V`` are ``r`` orthonormal directions, by one step of orthogonal iteration from the last ones at each `refresh`:
    the left singular vectors of the moment times these. ``Λ`` are the singular values, in the end those of the moment,
    and ``τ`` is its mean over the other directions, all relative to the mean of the diagonal. With much damping little
    is lost, and rows cost ``2 d r`` multiplications in place of ``d²``.

    Args:
        width: ``d``, length of the rows.
        decay: see `Side`.
        damping: see `Side`.
        shrinkage: see `Side`.
        directions: ``r``, less than the width.

    >>> from targetprop.batch import Batch
    >>> side = Leading(3, decay=0.0, damping=1.0, shrinkage=0.0, directions=1)
    >>> side.observe(torch.diag(torch.tensor([3.0, 2.0, 1.0]) ** 0.5), Batch(3))
    >>> for _ in range(40):
    ...     side.refresh()
    >>> side.solve(torch.eye(3)).diagonal()             # the moment is 1.5, 1, 0.5 relative to its mean
    tensor([0.4000, 0.5714, 0.5714])
    """

    directions: Tensor
    share: Tensor
    raised: Tensor

    def __init__(self, width: int, decay: float, damping: float, shrinkage: float, *, directions: int) -> None:
        """Start from directions of no meaning, the same every time."""
        super().__init__(width, decay, damping, shrinkage, diagonal=False)
        self.start(directions)

    def start(self, directions: int) -> None:
        """Put directions of no meaning in place of the inverse."""
        del self.inverse
        drawn = torch.randn(len(self.average), directions, generator=torch.Generator().manual_seed(0), device="cpu")
        self.register_buffer("directions", torch.linalg.qr(drawn).Q.to(self.average))
        self.register_buffer("share", torch.zeros(directions))  # of what lies along each direction, that is taken away
        self.register_buffer("raised", torch.ones(()))  # τ + μ

    @property
    def cost(self) -> int:
        """See `Side.cost`."""
        return 2 * self.directions.numel()

    @torch.no_grad()
    def refresh(self) -> None:
        """Turn the directions towards the leading ones; where nothing finite was seen, the last ones stay."""
        if not int(self.count):
            return
        turned = self.average @ self.directions
        if not bool(turned.isfinite().all()) or not bool(turned.any()):
            return
        basis, r = torch.linalg.qr(turned)
        squares, turn = torch.linalg.eigh(r @ r.T)
        self.directions.copy_(basis @ turn)
        self.set(squares.clamp(min=0).sqrt(), self.average.diagonal().mean() + torch.finfo(turned.dtype).tiny)

    def set(self, values: Tensor, size: Tensor) -> None:
        """Set the moment along the directions, and its mean over the others.

        Args:
            values: ``m Λ``, shape ``(r,)``.
            size: ``m``, the mean of the diagonal.
        """
        width, along = len(self.average), values / size
        rest = (width - along.sum()).clamp(min=0) / (width - len(values))
        self.raised.copy_(rest + self.total_damping())
        self.share.copy_(1 - self.raised / (self.raised + along - rest))

    def solve(self, v: Tensor) -> Tensor:
        """Apply the inverse to rows; see `Side.solve`."""
        return torch.addmm(v, (v @ self.directions).mul_(self.share), self.directions.T, alpha=-1).div_(self.raised)
