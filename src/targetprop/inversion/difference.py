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
        delta = problem.g_difference(problem.y0, problem.change)
        if not (error or direction):
            return Evaluation(delta, None, None)
        fx = problem.f_at(delta)
        missing = problem.missing(fx)
        return Evaluation(delta, missing, problem.g_difference(fx, missing) if direction else None)
