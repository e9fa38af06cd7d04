r"""Krylov inversion: the best answer in the space that repeated decoding of what is missing spans.

    ``δ_k = argmin ‖t − y₀ − J_f δ‖² + μ ‖δ‖²`` over ``δ ∈ span{g'(r_0), …, g'(r_{k−1})}``, ``r_k = t − y₀ − J_f δ_k``

with ``g'`` the linear part of the decoder. Any ``g`` serves that leads downhill. With ``g' = J_fᵀ`` it is the conjugate
gradient method on ``(J_fᵀ J_f + μ I) δ = J_fᵀ (t − y₀)`` (Hestenes & Stiefel 1952): the damped inverse of *this
sample's* Jacobian, kinks and pooling included, after as many steps as that has distinct singular values. With a rough
inverse it is input-space iteration with its best step sizes, the generalised conjugate residuals of Eisenstat 1983.

``J_f`` is seen through differences, ``f(x₀ + v) − y₀`` with ``‖v‖ = ‖t − y₀‖``: one evaluation of ``f`` and one of
``g`` a step. Damping is relative to the sample's own squared gain, ``μ = damping · ‖g'(r_0)‖²/‖r_0‖²``.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from targetprop.inversion.loop import Inversion
from targetprop.inversion.problem import Evaluation, Problem, per_sample, sample_norm
from targetprop.precision import no_autocast

_RIDGE = 10.0  # added to the small systems' diagonals, in roundings of their largest entry


@dataclass(frozen=True)
class Krylov(Inversion):
    """Solve for the input's change in a subspace, sample by sample.

    Attributes:
        steps: dimensions of the subspace, ≥ 1.
        damping: ``μ`` relative to the squared gain of ``g'`` on what is asked; 0 tends to the pseudo-inverse.

    >>> import torch, targetprop as tp
    >>> A = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    >>> f, g = lambda x: x @ A.T, lambda y: y @ A
    >>> [tp.invert(f, g, torch.ones(1, 2), torch.zeros(1, 2), method=Krylov(k)).x.round(decimals=3) for k in (1, 2)]
    [tensor([[0.4000, 0.4000]]), tensor([[0., 1.]])]
    """

    steps: int = 2
    damping: float = 0.0
    name: ClassVar[str] = "krylov"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: a setting is out of its range.
        """
        super().__post_init__()
        if self.steps < 1 or self.damping < 0:
            raise ValueError(f"krylov needs steps ≥ 1 and damping ≥ 0; got {self.steps} and {self.damping}")

    def start(self, problem: Problem) -> Tensor:
        """Start at the forward input, ``u = x − x₀ = 0``; see `Inversion.start`."""
        return problem.origin

    def evaluate(self, problem: Problem, u: Tensor, step: int, *, error: bool, direction: bool) -> Evaluation:
        """Build the subspace and solve in it; see `Inversion.evaluate`."""
        asked, delta, missing = problem.asked, u, problem.asked
        size, damping, fallback = sample_norm(asked), torch.zeros(()), None
        moves: list[Tensor] = []
        responses: list[Tensor] = []
        gram: list[list[Tensor]] = []
        right: list[Tensor] = []
        for _ in range(self.steps):
            move = problem.g_difference(problem.y0, missing)
            fallback = move if fallback is None else fallback
            length = sample_norm(move)
            damping = damping if moves else self.damping * _divided(length, size).square()
            move = move * per_sample(_divided(size, length), move)
            response = problem.f_at(move) - problem.base
            row = [_dot(r, response) + damping * _dot(m, move) for r, m in zip(responses, moves, strict=True)]
            row.append(_dot(response, response) + damping * size.square())
            gram = [*([*old, new] for old, new in zip(gram, row[:-1], strict=True)), row]
            right.append(_dot(response, asked))
            moves.append(move)
            responses.append(response)
            weights = _weigh(gram, right)
            delta = _combine(weights, moves) if len(moves) == self.steps else delta
            missing = asked - _combine(weights, responses) if len(moves) < self.steps else missing
        if not (error or direction):
            return Evaluation(delta, None, None, fallback)
        fx = problem.f_at(delta)
        left = problem.missing(fx)
        return Evaluation(delta, left, problem.g_difference(fx, left) if direction else None, fallback)


def _weigh(gram: list[list[Tensor]], right: list[Tensor]) -> Tensor:
    """Minimise ``‖asked − Σ w_i responses_i‖² + μ ‖Σ w_i moves_i‖²`` for each sample; shape ``(steps, n)``."""
    matrix = torch.stack([torch.stack(row) for row in gram]).permute(2, 0, 1)
    largest = matrix.diagonal(dim1=1, dim2=2).amax(1)
    # Directions that repeat others share their weight; a sample without any response stays where it is.
    floor = torch.where(largest > 0, _RIDGE * torch.finfo(matrix.dtype).eps * largest, torch.ones_like(largest))
    matrix = matrix + torch.diag_embed(floor.unsqueeze(1).expand(-1, len(right)))
    return torch.linalg.solve_ex(matrix, torch.stack(right, dim=1).to(matrix.dtype).unsqueeze(2))[0].squeeze(2).T


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each sample, in float32 at least."""
    with no_autocast(a):
        dots = torch.linalg.vecdot(a.flatten(1), b.flatten(1))
    return dots.to(torch.promote_types(dots.dtype, torch.float32))


def _combine(weights: Tensor, values: list[Tensor]) -> Tensor:
    total = per_sample(weights[0], values[0]) * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total.addcmul(per_sample(weight, value), value)
    return total.to(values[0].dtype)


def _divided(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b, torch.zeros_like(a))
