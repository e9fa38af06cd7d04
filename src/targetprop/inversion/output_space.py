r"""Output-space iteration ``u_{k+1} = u_k + α (t − f(x_k))``, ``x_k = g(u_k)``, from ``u₀ = t`` (Bengio 2020).

It converges when ``f∘g − id`` is a contraction, and then ``f(x) = t`` exactly, whether or not ``g`` is injective. The
differential form ``x_k = x₀ + g(u_k) − g(y₀)`` keeps ``x → x₀`` as ``t → y₀`` with any decoder.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from targetprop.inversion.loop import Iteration
from targetprop.inversion.problem import Evaluation, Problem


@dataclass(frozen=True)
class OutputSpace(Iteration):
    """Correct what is fed to the decoder until ``f`` maps its answer to the target.

    Attributes:
        steps: most steps taken, ≥ 0; zero steps are `Direct`, or `Difference` in the differential form.
        alpha: step size ``α``.
        tolerance: relative size of the step at which a sample has converged.
        anderson: memory of Anderson mixing; 0 is plain iteration.
        differential: use the differential form.

    >>> import torch, targetprop as tp
    >>> f, g = lambda x: 2 * x, lambda y: 0.3 * y
    >>> s = tp.invert(f, g, torch.ones(1, 1), torch.zeros(1, 1), method=OutputSpace(steps=50))
    >>> round(s.x.item(), 5)
    0.5
    """

    differential: bool = True
    name: ClassVar[str] = "output-space"

    def start(self, problem: Problem) -> Tensor:
        """Start at the target, ``u − y₀ = t − y₀``; see `Inversion.start`."""
        return problem.asked

    def evaluate(self, problem: Problem, u: Tensor, step: int, *, error: bool, direction: bool) -> Evaluation:
        """Decode the iterate and look at what is missing; see `Inversion.evaluate`."""
        if self.differential:
            delta = problem.g_difference(problem.y0, u)
        else:
            delta = problem.decode(u)
        missing = problem.missing(problem.f_at(delta)) if error or direction else None
        fallback = delta if step == 0 and self.differential else None
        return Evaluation(delta, missing if error else None, missing if direction else None, fallback)
