r"""Anderson mixing of a fixed-point iteration, per sample (Walker & Ni 2011, *Anderson acceleration*).

With ``d_k = d(u_k)`` and the last ``m`` differences ``U, D`` of iterates and directions as columns, the next iterate is
``u_k + α d_k − (U + αD) γ`` with ``γ`` minimising ``‖d_k − Dγ‖``. A sample whose direction did not shrink forgets its
history and takes the plain damped step: the safeguard.
"""

import torch
from torch import Tensor

from targetprop.inversion.columns import Columns
from targetprop.inversion.problem import per_sample

_RIDGE = 1e-10


class Anderson:
    """History of one loop; each sample is mixed on its own.

    Args:
        memory: number of past differences remembered, ≥ 1.
        alpha: step size ``α``.
        columns: where the columns of the iterates are.
    """

    def __init__(self, memory: int, alpha: float, columns: Columns) -> None:
        """Start without history."""
        self.memory, self.alpha, self._columns = memory, alpha, columns
        self._du: list[Tensor] = []
        self._dd: list[Tensor] = []
        self._last: tuple[Tensor, Tensor] | None = None

    def move(self, u: Tensor, d: Tensor) -> Tensor:
        """Compute the next step and remember this one.

        Args:
            u: iterate, shape ``(n, …)``.
            d: its direction, same shape.

        Returns:
            What to add to ``u``.
        """
        flat_u, flat_d = u.flatten(1), d.flatten(1)
        plain = self.alpha * flat_d
        if self._last is None:
            self._last = flat_u, flat_d
            return plain.view_as(u)
        now, before = self._columns.norms(flat_d, self._last[1])
        shrunk = per_sample(now < before, flat_d)
        self._du = [t * shrunk for t in (*self._du, flat_u - self._last[0])][-self.memory :]
        self._dd = [t * shrunk for t in (*self._dd, flat_d - self._last[1])][-self.memory :]
        self._last = flat_u, flat_d
        du, dd = torch.stack(self._du, dim=2), torch.stack(self._dd, dim=2)
        products = (dd.mT @ torch.cat([dd, flat_d.unsqueeze(2)], dim=2)).to(torch.promote_types(u.dtype, torch.float32))
        gram, fit = self._columns.sum(products).split([dd.shape[2], 1], dim=2)  # no solver has fewer digits
        scale = gram.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=u.device)
        gram = gram + eye * torch.where(scale > 0, _RIDGE * scale, torch.ones_like(scale))
        gamma, info = torch.linalg.solve_ex(gram, fit)
        mixed = plain - ((du + self.alpha * dd) @ gamma).squeeze(2)
        broken = self._columns.sum((~torch.isfinite(mixed)).sum(dim=1, keepdim=True, dtype=u.dtype))
        return torch.where((info == 0)[:, None] & (broken == 0), mixed, plain).view_as(u)
