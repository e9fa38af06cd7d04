"""A wide side: its leading directions are followed from batch to batch, and its moment is never written out."""

import torch
from torch import Tensor

from targetprop.batch import Batch
from targetprop.updates.leading import Leading
from targetprop.updates.side import Side


class Sketch(Leading):
    r"""A `Leading` side of memory ``d r`` in place of ``d²``.

    Each batch is one step of orthogonal iteration on what is known of the moment, ``M = γ V Λ Vᵀ + (1 − γ) E[v vᵀ]``:
    the new ``V`` spans ``M V``, and ``Λ`` is ``M`` along it. What a batch has outside of ``V`` is kept as its trace.

    Args:
        width: ``d``, length of the rows.
        decay: ``γ``.
        damping: see `Side`.
        shrinkage: see `Side`.
        directions: ``r``, less than the width.

    >>> side = Sketch(3, decay=0.5, damping=1.0, shrinkage=0.0, directions=1)
    >>> for _ in range(40):
    ...     side.observe(torch.diag(torch.tensor([3.0, 2.0, 1.0]) ** 0.5), Batch(3))
    >>> side.refresh()
    >>> side.solve(torch.eye(3)).diagonal()             # the moment is 1.5, 1, 0.5 relative to its mean
    tensor([0.4000, 0.5714, 0.5714])
    """

    values: Tensor

    def __init__(self, width: int, decay: float, damping: float, shrinkage: float, *, directions: int) -> None:
        """Start from directions of no meaning, the same every time."""
        Side.__init__(self, width, decay, damping, shrinkage, diagonal=True)
        self.start(directions)
        self.register_buffer("values", torch.zeros(directions))  # Λ, not yet corrected for its start at zero

    @torch.no_grad()
    def observe(self, v: Tensor, batch: Batch, independent: int | None = None) -> None:
        """Turn the directions towards those of a batch; one that is not finite is left out. See `Side.observe`."""
        v, old = v.to(self.average.dtype), self.directions
        turned, _ = batch.move_average(old * self.values, v, v @ old, self.decay)
        if not bool(turned.isfinite().all()):
            return
        super().observe(v, batch, independent)
        basis = torch.linalg.qr(turned).Q
        kept, along = basis.T @ old, v @ basis
        small, _ = batch.move_average((kept * self.values) @ kept.T, along, along, self.decay)
        values, turn = torch.linalg.eigh(small)
        self.values.copy_(values.clamp(min=0))
        self.directions.copy_(basis @ turn)

    @torch.no_grad()
    def refresh(self) -> None:
        """Make of the averages what `solve` reads."""
        if int(self.count):
            seen, size = 1 - self.decay ** int(self.count), self.moment.mean() + torch.finfo(self.average.dtype).tiny
            self.set(self.values / seen, size)
