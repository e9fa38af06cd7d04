r"""Predicted and measured convergence of the iterations, ``‖x_k − x*‖ ≤ ρᵏ ‖x₀ − x*‖`` (Bengio 2020).

>>> import torch
>>> A = torch.eye(2, dtype=torch.float64)
>>> affine_error(A, 0.5 * A, alpha=1.0, steps=3, error=torch.ones(1, 2, dtype=torch.float64))     # (1 − 0.5)³
tensor([[0.1250, 0.1250]], dtype=torch.float64)
>>> f, g = lambda x: x + 0.5 * x.sin(), lambda y: y
>>> zero = torch.zeros(1, 1, dtype=torch.float64)
>>> lipschitz(f, g, zero, zero + 1.0)              # the derivative of 0.5 sin x is largest at 0
tensor([0.5000], dtype=torch.float64)
"""

import torch
from torch import Tensor

from targetprop.inversion import Inversion, Map, Problem, sample_norm, solve


def affine_error(forward: Tensor, decoder: Tensor, alpha: float, steps: int, error: Tensor) -> Tensor:
    """Compute ``(I − α G A)ᵏ e₀``: the error of the input-space iteration on affine ``f`` and ``g`` after ``k`` steps.

    Args:
        forward: ``A`` of ``f(x) = A x + a``, shape ``(d_out, d_in)``.
        decoder: ``G`` of ``g(y) = G y + b``, shape ``(d_in, d_out)``.
        alpha: step size ``α``.
        steps: ``k``.
        error: ``e₀ = x₀ − x*``, shape ``(n, d_in)``.

    Returns:
        ``e_k``, shape of ``error``.
    """
    eye = torch.eye(len(decoder), dtype=forward.dtype, device=forward.device)
    return error @ torch.linalg.matrix_power(eye - alpha * decoder @ forward, steps).mT


def lipschitz(f: Map, g: Map, a: Tensor, b: Tensor, points: int = 33) -> Tensor:
    """Measure the Lipschitz constant of ``g∘f − id`` between two points, sample by sample.

    Args:
        f: the forward map, sample by sample.
        g: its approximate inverse, sample by sample.
        a: one end of the segment, shape ``(n, d)``.
        b: the other end, same shape.
        points: where on the segment the Jacobian is looked at, both ends included, ≥ 2.

    Returns:
        The largest spectral norm of ``J_{g∘f} − I`` on the segment, shape ``(n,)``: no less than
        ``‖(g∘f − id)(a) − (g∘f − id)(b)‖ / ‖a − b‖``, up to how finely the segment is sampled.
    """

    def deviation(x: Tensor) -> Tensor:
        x = x.unsqueeze(0)
        return (g(f(x)) - x).squeeze(0)

    jacobian = torch.func.vmap(torch.func.jacrev(deviation))
    shares = torch.linspace(0, 1, points, dtype=a.dtype, device=a.device)
    return torch.stack([torch.linalg.matrix_norm(jacobian(a + s * (b - a)), ord=2) for s in shares]).amax(0)


def contraction(iterates: list[Tensor], solution: Tensor) -> Tensor:
    """Measure by how much each step of an iteration shrank the error.

    Args:
        iterates: ``x_0 … x_k``, each of shape ``(n, …)``.
        solution: ``x*``, same shape.

    Returns:
        ``‖x_{k+1} − x*‖ / ‖x_k − x*‖``, shape ``(k, n)``.
    """
    errors = torch.stack([sample_norm(x - solution) for x in iterates])
    return errors[1:] / errors[:-1]


def visited(f: Map, g: Map, target: Tensor, x0: Tensor, method: Inversion) -> list[Tensor]:
    """List the points at which an inversion rule evaluates ``f``: the estimates ``x_k`` of an iteration.

    Args:
        f: the forward map.
        g: its approximate inverse.
        target: ``t``, shape ``(n, …)``.
        x0: where the forward pass stands, shape ``(n, …)``.
        method: the rule; a sample that has converged stays where it is, so give it a tolerance of 0.

    Returns:
        ``x_0 … x_k``, each of shape ``(n, …)``; an input-space iteration starts at ``x0``, an output-space iteration at
        the decoded target.
    """
    y0 = f(x0)
    points = [x0] if method.name == "input-space" else []

    def recorded(x: Tensor) -> Tensor:
        points.append(x)
        return f(x)

    solve(Problem(recorded, g, target - y0, x0, y0), method, measure=False)
    return points
