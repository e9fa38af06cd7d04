r"""Input-space iteration ``x_{k+1} = x_k + α (g(t) − g(f(x_k)))`` from ``x₀`` (Bengio 2020, arXiv:2007.15139).

If ``g∘f − id`` is Lipschitz with constant ``ρ < 1`` around the solution, ``‖x_k − x*‖ ≤ ρᵏ ‖x₀ − x*‖`` at ``α = 1``;
for affine maps the error is ``(I − αGA)ᵏ e₀``. In the null space of ``f`` the iterate stays where the forward pass was.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from targetprop.inversion.loop import Iteration
from targetprop.inversion.problem import Evaluation, Problem


@dataclass(frozen=True)
class InputSpace(Iteration):
    """Correct the input until the decoder cannot tell ``f(x)`` from the target.

    Attributes:
        steps: most steps taken, ≥ 0.
        alpha: step size ``α``.
        tolerance: relative size of the step at which a sample has converged.
        anderson: memory of Anderson mixing; 0 is plain iteration.

    >>> import torch, targetprop as tp
    >>> f, g = lambda x: x + 0.3 * x.sin(), lambda y: y
    >>> s = tp.invert(f, g, torch.ones(1, 1), torch.zeros(1, 1), method=InputSpace(steps=50))
    >>> bool((f(s.x) - 1).abs() < 1e-5), int(s.steps[0]) < 50
    (True, True)
    """

    name: ClassVar[str] = "input-space"

    def start(self, problem: Problem) -> Tensor:
        """Start at the forward input, ``u = x − x₀ = 0``; see `Inversion.start`."""
        return problem.origin

    def evaluate(self, problem: Problem, u: Tensor, step: int, *, error: bool, direction: bool) -> Evaluation:
        """Compare ``f(u)`` with the target, in both spaces; see `Inversion.evaluate`."""
        fx = problem.base if step == 0 else problem.f_at(u)
        missing = problem.asked if step == 0 else problem.missing(fx)
        move = problem.g_difference(fx, missing) if direction else None
        return Evaluation(u, missing, move, fallback=move if step == 0 else None)
