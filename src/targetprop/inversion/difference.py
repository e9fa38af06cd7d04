"""Difference inversion ``x = x₀ + g(t) − g(y₀)`` (difference target propagation; Lee 2015, arXiv:1412.7525)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from targetprop.inversion.loop import Inversion
from targetprop.inversion.problem import Evaluation, Problem


@dataclass(frozen=True)
class Difference(Inversion):
    """One corrected call of the decoder, ``x = x₀ + g(t) − g(y₀)``; the error of ``g`` at ``y₀`` cancels.

    It is one step of `InputSpace` at ``α = 1``.

    >>> import torch, targetprop as tp
    >>> f, g = lambda x: 2 * x, lambda y: y / 2 + 7
    >>> tp.invert(f, g, torch.ones(1, 1), torch.zeros(1, 1), method=Difference()).x
    tensor([[0.5000]])
    """

    name: ClassVar[str] = "difference"

    def start(self, problem: Problem) -> Tensor:
        """Start at the forward input; see `Inversion.start`."""
        return problem.x0

    def evaluate(self, problem: Problem, u: Tensor, step: int, *, error: bool, direction: bool) -> Evaluation:
        """Correct the decoded target; see `Inversion.evaluate`."""
        x = problem.x0 + problem.g_difference(problem.target, problem.y0)
        fx = problem.f(x) if error or direction else None
        return Evaluation(
            x,
            problem.target - fx if fx is not None and error else None,
            problem.g_difference(problem.target, fx) if fx is not None and direction else None,
        )
