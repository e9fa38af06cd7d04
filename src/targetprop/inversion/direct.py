"""Direct inversion ``x = g(t)`` (target propagation; Bengio 2014, arXiv:1407.7906)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from targetprop.inversion.loop import Inversion
from targetprop.inversion.problem import Evaluation, Problem


@dataclass(frozen=True)
class Direct(Inversion):
    """One call of the decoder, ``x = g(t)``: right only as far as ``g`` is an exact inverse.

    >>> import torch, targetprop as tp
    >>> tp.invert(lambda x: 2 * x, lambda y: y / 2, torch.ones(1, 1), torch.zeros(1, 1), method=Direct()).x
    tensor([[0.5000]])
    """

    name: ClassVar[str] = "direct"

    def start(self, problem: Problem) -> Tensor:
        """Start at the target; see `Inversion.start`."""
        return problem.target

    def evaluate(self, problem: Problem, u: Tensor, step: int, *, error: bool, direction: bool) -> Evaluation:
        """Decode the target; see `Inversion.evaluate`."""
        delta = problem.decode(problem.change)
        if not (error or direction):
            return Evaluation(delta, None, None)
        fx = problem.f_at(delta)
        missing = problem.missing(fx)
        return Evaluation(delta, missing, problem.g_difference(fx, missing) if direction else None)
