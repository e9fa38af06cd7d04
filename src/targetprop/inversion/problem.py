"""What an inversion is asked, and what it answers: plain records of tensors, without any module."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


class Status(IntEnum):
    """How the inversion of one sample ended; a `Solution` holds these codes as an integer tensor."""

    CONVERGED = 0
    MAX_STEPS = 1
    DIVERGED = 2


@dataclass(frozen=True, eq=False)
class Problem:
    """Find ``x`` with ``f(x) ≈ t``, near a pair that satisfies ``f(x₀) = y₀``.

    Attributes:
        f: the forward map.
        g: its approximate inverse. If it has a method ``difference(a, b)``, that is used for ``g(a) − g(b)``.
        target: ``t``, shape ``(n, …)`` of ``y0``.
        x0: forward input, shape ``(n, …)``.
        y0: forward output ``f(x0)``, shape ``(n, …)``.
    """

    f: Map
    g: Map
    target: Tensor
    x0: Tensor
    y0: Tensor

    def g_difference(self, a: Tensor, b: Tensor) -> Tensor:
        """Evaluate ``g(a) − g(b)``, without cancellation where the decoder knows how.

        Args:
            a: points of shape ``(n, …)``.
            b: points of the same shape.

        Returns:
            The difference, shape of ``x0``.
        """
        difference = getattr(self.g, "difference", None)
        return self.g(a) - self.g(b) if difference is None else difference(a, b)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """An iterate, looked at.

    Attributes:
        x: the estimate of the inverse, shape ``(n, …)``.
        error: what is left of the forward equation, ``t − f(x)``; None where it was not asked for.
        direction: what one undamped step would add to the iterate; None where it was not asked for.
    """

    x: Tensor
    error: Tensor | None
    direction: Tensor | None


@dataclass(frozen=True, eq=False)
class Solution:
    """The answer, sample by sample; no entry of ``x`` is ever NaN or infinite unless ``x0`` was.

    Attributes:
        x: the best iterate, shape of ``x0``.
        status: `Status` codes, shape ``(n,)``.
        steps: steps taken until the sample stopped, shape ``(n,)``.
        forward_residual: ``‖t − f(x)‖``, what we want small, shape ``(n,)``; None if not measured.
        inverse_residual: ``‖g(t) − g(f(x))‖`` or the rule's own step, what the iteration drives to zero, at the last
            iterate at which it was evaluated, shape ``(n,)``; None if not measured.
    """

    x: Tensor
    status: Tensor
    steps: Tensor
    forward_residual: Tensor | None
    inverse_residual: Tensor | None

    @property
    def converged(self) -> Tensor:
        """Boolean mask of the samples that met the tolerance, shape ``(n,)``."""
        return self.status == Status.CONVERGED


def sample_norm(values: Tensor) -> Tensor:
    """Compute the Euclidean norm of each sample.

    Args:
        values: tensor of shape ``(n, …)``.

    Returns:
        Norms of shape ``(n,)``.
    """
    return torch.linalg.vector_norm(values.flatten(1), dim=1)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Shape one value per sample for broadcasting.

    Args:
        values: shape ``(n,)``.
        like: tensor of shape ``(n, …)``.

    Returns:
        ``values`` with as many dimensions as ``like``.
    """
    return values.view(-1, *[1] * (like.dim() - 1))
