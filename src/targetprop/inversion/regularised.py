r"""Regularised inversion ``min_x ½‖f(x) − t‖² + λ/2 ‖x − x₀‖²`` (Roulet & Harchaoui 2021), without any decoder.

A few gradient steps ``x ← x + α (J_f(x)ᵀ (t − f(x)) − λ (x − x₀))``; the solution exists for every ``f``, so the
rule is also the reference for layers that have no inverse. The source leaves the solver open; ours is plain gradient
descent.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from targetprop.inversion.loop import Iteration
from targetprop.inversion.problem import Evaluation, Problem
from targetprop.settings import check_ranges


@dataclass(frozen=True)
class Regularised(Iteration):
    """Gradient descent on the regularised inversion problem; ``f`` must be differentiable.

    Attributes:
        steps: most steps taken, ≥ 0.
        alpha: step size ``α``; convergence needs ``α (‖J_f‖² + λ) < 2``.
        tolerance: relative size of the step at which a sample has converged.
        anderson: memory of Anderson mixing; 0 is plain iteration.
        damping: ``λ ≥ 0``.

    >>> import torch, targetprop as tp
    >>> rule = Regularised(steps=200, alpha=0.2, damping=1.0)
    >>> s = tp.invert(lambda x: 2 * x, lambda y: y, torch.ones(1, 1), torch.zeros(1, 1), method=rule)
    >>> round(s.x.item(), 4)     # 2 / (4 + 1)
    0.4
    """

    damping: float = 0.1
    name: ClassVar[str] = "regularised"

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        check_ranges(self, damping=(self.damping >= 0, "≥ 0"))

    @property
    def needs_decoder(self) -> bool:
        """Whether the rule calls ``g``: it does not."""
        return False

    def start(self, problem: Problem) -> Tensor:
        """Start at the forward input, ``u = x − x₀ = 0``; see `Inversion.start`."""
        return problem.origin

    def evaluate(self, problem: Problem, u: Tensor, step: int, *, error: bool, direction: bool) -> Evaluation:
        """Take the gradient of the objective at ``u``; see `Inversion.evaluate`."""
        if not direction:
            return Evaluation(u, problem.missing(problem.f_at(u)) if error else None, None)
        with torch.enable_grad():
            at = u.detach().requires_grad_()
            reached = problem.f_at(at)
        missing = problem.asked if step == 0 else problem.missing(reached.detach())
        d = -self.damping * u
        if reached.requires_grad:
            d += torch.autograd.grad(reached, at, missing, materialize_grads=True)[0]
        return Evaluation(u, missing if error else None, d)
