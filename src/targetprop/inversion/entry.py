"""The entry points: invert any two callables, or solve a problem whose change is in hand."""

from torch import Tensor

from targetprop.inversion.input_space import InputSpace
from targetprop.inversion.loop import Inversion, iterate
from targetprop.inversion.problem import Evaluation, Map, Problem, Solution


def invert(
    f: Map,
    g: Map,
    target: Tensor,
    x0: Tensor,
    y0: Tensor | None = None,
    method: Inversion | None = None,
    *,
    measure: bool = True,
) -> Solution:
    """Find ``x`` with ``f(x) ≈ target``, sample by sample.

    Args:
        f: forward map, from ``(n, …)`` to ``(n, …)``, one sample's output depending on that sample alone.
        g: approximate inverse of ``f``.
        target: ``t``, shape ``(n, …)``.
        x0: where the forward pass stands, shape ``(n, …)``.
        y0: ``f(x0)``; computed if not given.
        method: the rule and its settings; `InputSpace` if not given.
        measure: evaluate both residuals of the answer, at the cost of at most one more call of each map.

    Returns:
        The solution with status and residuals per sample.

    Raises:
        ValueError: the shapes do not fit.

    >>> import torch, targetprop as tp
    >>> A = torch.tensor([[2.0, 0.5], [0.0, 1.0]])
    >>> rough = torch.linalg.inv(A) * 1.2
    >>> f, g = lambda x: x @ A.T, lambda y: y @ rough.T
    >>> solution = tp.invert(f, g, torch.tensor([[1.0, 1.0]]), torch.zeros(1, 2))
    >>> [round(v, 4) for v in solution.x[0].tolist()], bool(solution.converged.all())
    ([0.25, 1.0], True)
    """
    method = InputSpace() if method is None else method
    y0 = f(x0) if y0 is None else y0
    if target.shape != y0.shape:
        raise ValueError(f"target has shape {tuple(target.shape)}, but f(x0) has {tuple(y0.shape)}; they must agree")
    return solve(Problem(f, g, target - y0, x0, y0), method, measure=measure)


def solve(problem: Problem, method: Inversion, *, measure: bool) -> Solution:
    """Run a rule on a problem; `invert` for those who have the change of the output in hand.

    Args:
        problem: what is to be inverted.
        method: the rule and its settings.
        measure: evaluate both residuals of the answer.

    Returns:
        The solution with status per sample.
    """

    def evaluate(u: Tensor, step: int, error: bool, direction: bool) -> Evaluation:
        return method.evaluate(problem, u, step, error=error, direction=direction)

    return iterate(evaluate, method.start(problem), problem.x0, method, measure=measure)
