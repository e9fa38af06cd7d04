"""Layers that fold positions into samples, or the other way round: as many samples at the input as at the output."""

from dataclasses import dataclass
from math import gcd

from torch import Tensor

from targetprop.inversion.problem import Problem


@dataclass(frozen=True, eq=False)
class _Folded:
    """The decoder of a problem, for tensors of shape ``(n, …)``."""

    problem: Problem
    n: int

    def __call__(self, y: Tensor) -> Tensor:
        return self.problem.g(y.reshape(self.problem.y0.shape)).reshape(self.n, -1)

    def difference(self, y: Tensor, change: Tensor) -> Tensor:
        shape = self.problem.y0.shape
        return self.problem.g_difference(y.reshape(shape), change.reshape(shape)).reshape(self.n, -1)


def by_sample(problem: Problem, n: int | None = None) -> Problem:
    """Pose an inversion with as many samples at its input as at its output, of which each may have several rows.

    Args:
        problem: the inversion.
        n: how many samples; as many as both sides allow if None.

    Returns:
        The same with tensors of shape ``(n, …)``.
    """
    f, x, h = problem.f, problem.x0, problem.y0
    n = gcd(len(x), len(h)) if n is None else n
    if len(x) == len(h) == n and min(x.dim(), h.dim()) > 1:
        return problem

    def forward(values: Tensor) -> Tensor:
        return f(values.reshape(x.shape)).reshape(n, -1)

    return Problem(forward, _Folded(problem, n), problem.change.reshape(n, -1), x.reshape(n, -1), h.reshape(n, -1))
