r"""The contraction factor of an iteration: the largest singular value of one step's Jacobian, sample by sample.

>>> from targetprop.inversion import Difference
>>> zero = torch.zeros(1, 2)
>>> problem = Problem(lambda x: 2 * x, lambda y: 0.2 * y, zero, zero, zero)
>>> step_norm(problem, Difference(), 1.0, widening=False)               # 1 − 2 · 0.2
tensor([0.6000], dtype=torch.float64)
"""

from typing import Literal

import torch
from torch import Tensor

from targetprop.diagnostics.spectral import spectral_norm
from targetprop.inversion import Direct, Inversion, Map, OutputSpace, Problem, per_sample, sample_norm

Jacobian = Literal["autograd", "symmetric", "unknown"]


def step_norm(
    problem: Problem, rule: Inversion, alpha: float, *, widening: bool, jacobian: Jacobian = "autograd"
) -> Tensor | None:
    """Compute ``‖I − α J_{f∘g}‖``, of ``g∘f`` if the layer widens; infinite if no number, None if not to be had."""
    at = problem.x0 if widening else problem.y0
    if jacobian == "unknown":
        return None
    try:
        if jacobian == "symmetric":
            norm = _symmetric_norm(_symmetric_map(problem, alpha, widening), at)
        else:
            norm = spectral_norm(_step_map(problem, rule, alpha, widening), at)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a module that autograd cannot differentiate, or not twice
        return None
    return norm.nan_to_num(nan=torch.inf).double()


def _step_map(p: Problem, rule: Inversion, alpha: float, widening: bool) -> Map:
    """One step of the iteration, as a map of the iterate, but for a constant."""
    direct = isinstance(rule, Direct) or (isinstance(rule, OutputSpace) and not rule.differential)

    def without_decoder(x: Tensor) -> Tensor:
        step = rule.evaluate(p, x - p.x0, 1, error=False, direction=True).direction
        assert step is not None
        return x + alpha * step

    if not rule.needs_decoder:
        return without_decoder
    if widening:
        return lambda x: x - alpha * p.g(p.f(x))
    return lambda u: u - alpha * p.f(p.g(u) if direct else p.x0 + p.g(u) - p.g(p.y0))


def _symmetric_map(p: Problem, alpha: float, widening: bool) -> Map:
    """``v − α J_g J_f v``, or ``v − α J_f J_g v``, for an affine decoder that knows its own differences."""

    def forward(v: Tensor) -> Tensor:
        return torch.func.jvp(p.f, (p.x0,), (v,))[1]

    if widening:
        return lambda v: v - alpha * p.g_difference(p.y0, forward(v))
    return lambda v: v - alpha * forward(p.g_difference(p.y0, v))


def _symmetric_norm(apply: Map, like: Tensor, steps: int = 60) -> Tensor:
    """Power iteration on a symmetric map that can be applied and not differentiated; each sample stops on its own."""
    generator = torch.Generator(device=like.device).manual_seed(0)
    v = torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
    size, rounding = sample_norm(v), 4 * torch.finfo(like.dtype).eps
    v, moving = v / per_sample(size, v), torch.ones_like(size, dtype=torch.bool)
    for _ in range(steps):
        image = apply(v)
        new = sample_norm(image)
        moving = moving & ~((new - size).abs() <= rounding * new)
        size = torch.where(moving, new, size)
        if not bool(moving.any()):
            break
        v = torch.where(per_sample(moving, v), image / per_sample(new, v), v)
    return size
