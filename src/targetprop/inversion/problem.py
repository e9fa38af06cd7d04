"""What an inversion is asked, and what it answers: plain records of tensors, without any module."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import torch
from torch import Tensor

from targetprop.precision import at_least_float32, is_cast, no_autocast

Map = Callable[[Tensor], Tensor]


class Status(IntEnum):
    """How the inversion of one sample ended; a `Solution` holds these codes as an integer tensor.

    A sample that diverged before it had come any closer to its target takes the difference target instead,
    ``x₀ + g(t) − g(y₀)``, and its status is FALLBACK; it stays DIVERGED where it keeps an iterate that had come closer,
    or, without a finite difference target, ``x₀``.
    """

    CONVERGED = 0
    MAX_STEPS = 1
    DIVERGED = 2
    FALLBACK = 3


@dataclass(frozen=True, eq=False)
class Problem:
    """Find ``x`` with ``f(x) ≈ t``, near a pair that satisfies ``f(x₀) = y₀``.

    Attributes:
        f: the forward map.
        g: its approximate inverse. If it has a method ``difference(y, change)``, that is used for
            ``g(y + change) − g(y)``.
        change: ``t − y₀``, shape ``(n, …)`` of ``y0``. Changes, not points, are passed on: nothing cancels.
        x0: forward input, shape ``(n, …)``.
        y0: forward output ``f(x0)``, shape ``(n, …)``.
    """

    f: Map
    g: Map
    change: Tensor
    x0: Tensor
    y0: Tensor

    @cached_property
    def cast(self) -> bool:
        """Whether autocast rounds ``f`` and ``g`` to half precision, which leaves nothing of a small difference."""
        return is_cast(self.x0)

    @cached_property
    def base(self) -> Tensor:
        """``f(x0)`` in the precision in which it is compared, shape of ``y0``."""
        return self.f_at(torch.zeros_like(self.x0)) if self.cast else self.y0

    @property
    def asked(self) -> Tensor:
        """The change in the precision in which it is compared, shape of ``y0``."""
        return at_least_float32(self.change) if self.cast else self.change

    @property
    def target(self) -> Tensor:
        """The target ``t``, shape of ``y0``."""
        return self.base + self.asked

    @property
    def origin(self) -> Tensor:
        """No change of the input in the precision that iterates have, zeros of the shape of ``x0``."""
        return torch.zeros_like(at_least_float32(self.x0) if self.cast else self.x0)

    def f_at(self, u: Tensor) -> Tensor:
        """Evaluate ``f(x0 + u)``, in float32 where autocast would round it.

        Args:
            u: change of the input, shape ``(n, …)`` of ``x0``.

        Returns:
            Shape of ``y0``.
        """
        if not self.cast:
            return self.f(self.x0 + u)
        with no_autocast(self.x0):
            return self.f(at_least_float32(self.x0) + at_least_float32(u))

    def decode(self, change: Tensor) -> Tensor:
        """Evaluate ``g(y0 + change) − x0``, in float32 where autocast would round it.

        Args:
            change: shape ``(n, …)`` of ``y0``.

        Returns:
            Shape of ``x0``.
        """
        if not self.cast:
            return self.g(self.y0 + change) - self.x0
        with no_autocast(self.x0):
            return self.g(at_least_float32(self.y0) + at_least_float32(change)) - at_least_float32(self.x0)

    def missing(self, fx: Tensor) -> Tensor:
        """Compare with the target.

        Args:
            fx: what `f_at` returned.

        Returns:
            ``t − f(x)``, shape of ``y0``.
        """
        return self.asked - (fx - self.base) if self.cast else self.target - fx

    def g_difference(self, y: Tensor, change: Tensor) -> Tensor:
        """Evaluate ``g(y + change) − g(y)``, without cancellation where the decoder knows how.

        Args:
            y: points of shape ``(n, …)``.
            change: changes of the same shape.

        Returns:
            The difference, shape of ``x0``.
        """
        difference = getattr(self.g, "difference", None)
        found = self.g(y + change) - self.g(y) if difference is None else difference(y, change)
        return at_least_float32(found) if self.cast else found


@dataclass(frozen=True, eq=False)
class Evaluation:
    """An iterate, looked at.

    Attributes:
        delta: the estimate of the inverse, less ``x₀``, shape ``(n, …)``.
        error: what is left of the forward equation, ``t − f(x)``; None where it was not asked for.
        direction: what one undamped step would add to the iterate; None where it was not asked for.
        fallback: at the first iterate, ``g(t) − g(y₀)`` for the samples that will diverge; None if the rule has none.
    """

    delta: Tensor
    error: Tensor | None
    direction: Tensor | None
    fallback: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """How an inversion ended, sample by sample.

    Attributes:
        status: `Status` codes, shape ``(n,)``.
        steps: steps taken until the sample stopped, shape ``(n,)``.
        forward_residual: ``‖t − f(x)‖``, what we want small, shape ``(n,)``; None if not measured, and NaN for a
            sample that fell back if it was not asked for.
        inverse_residual: ``‖g(t) − g(f(x))‖`` or the rule's own step, what the iteration drives to zero, at the last
            iterate at which it was evaluated, shape ``(n,)``; None if not measured.
    """

    status: Tensor
    steps: Tensor
    forward_residual: Tensor | None
    inverse_residual: Tensor | None

    @property
    def converged(self) -> Tensor:
        """Boolean mask of the samples that met the tolerance, shape ``(n,)``."""
        return self.status == Status.CONVERGED

    @property
    def diverged(self) -> Tensor:
        """Boolean mask of the samples that diverged, whatever they took instead, shape ``(n,)``."""
        return (self.status == Status.DIVERGED) | (self.status == Status.FALLBACK)


@dataclass(frozen=True, eq=False)
class Solution(Outcome):
    """An outcome and the answer; no entry of ``x`` is ever NaN or infinite unless ``x0`` was.

    Attributes:
        x0: where the forward pass stands, shape ``(n, …)``.
        delta: the best iterate less ``x₀``, same shape.
    """

    x0: Tensor
    delta: Tensor

    @property
    def x(self) -> Tensor:
        """The best iterate, shape of ``x0``."""
        return self.x0 + self.delta

    @property
    def outcome(self) -> Outcome:
        """The outcome alone, which keeps no activations alive."""
        return Outcome(self.status, self.steps, self.forward_residual, self.inverse_residual)


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
