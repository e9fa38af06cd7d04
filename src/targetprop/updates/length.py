"""How long a step of a map may be: Polyak's length, and a bound in the units of its outputs."""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from targetprop.updates.asked import Regression

_MEASURED = 32  # samples that a change is tried on


@dataclass(frozen=True)
class Length:
    """``min(ρ e / D, r / c) / L``; see `targetprop.updates.kronecker`.

    Attributes:
        decrease: ``ρ``.
        limit: ``r``.
        momentum: share of the old averages of ``e`` and ``D`` that is kept, as of those of the change.
        maps: ``L``, how many maps share a step.
    """

    decrease: float
    limit: float
    momentum: float
    maps: int

    def measure(self, newest: Tensor, product: Tensor | None, left: Tensor, asked: Regression, stride: int) -> Tensor:
        """Find the length, and average ``e`` and ``D``.

        An average of changes that noise cancels is shorter than its parts, and so then is the step.

        Args:
            newest: ``N``, shape ``(k, d)``; ``c`` is measured on some samples.
            product: ``Σ δ aᵀ/n``, for ``D``; without it, that is measured on these samples, too.
            left: the averages of ``e`` and ``D``, shape ``(2,)``, moved in place.
            asked: the regression.
            stride: of how many positions of these samples one is looked at.

        Returns:
            The length, a number; of a change that lowers nothing, ``r / (c L)``.
        """
        batch, positions = asked.common.batch, asked.positions
        assert asked.common.excess is not None
        head = batch.head(_MEASURED)
        rows = head.total * asked.kept(stride)
        seen = slice(head.rows)
        moved = asked.some_a(seen, stride).to(newest.dtype) @ newest.T
        square = moved.square().sum()
        if product is None:
            lowered = _dot(asked.some_dz(seen, stride).to(moved), moved)
            batch.sum_([square, lowered])
            lowered = lowered * (batch.total * positions**2 / rows / asked.scale)
        else:
            batch.sum_([square])
            lowered = _dot(product, newest) * positions
        now = torch.stack([asked.common.excess.to(lowered), lowered])
        excess, decrease = left.lerp_(now, 1 - self.momentum).unbind()
        tiny = torch.finfo(now.dtype).tiny
        polyak = excess / decrease.clamp(min=tiny)
        bound = square.clamp(min=tiny).rsqrt() * (self.limit * sqrt(rows * len(newest) / asked.times) / self.decrease)
        return polyak.minimum(bound) * (self.decrease / self.maps)


def _dot(v: Tensor, w: Tensor) -> Tensor:
    return v.reshape(-1).dot(w.reshape(-1))
