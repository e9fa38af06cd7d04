r"""The decoder that needs no training: damped least squares through the layer's own derivative.

At the forward activation, ``g(y) = x₀ + d(y − y₀)`` with ``d(δ) = argmin w/2 ‖J d − δ‖² + λ/2 ‖d‖² − (1−w) dᵀJᵀδ``,
that is

    ``(w JᵀJ + λ I) d = Jᵀδ``,   so   ``J_g = J_fᵀ (w J_f J_fᵀ + λ I)⁻¹``

solved per sample by conjugate gradients from zero, which gives the pseudo-inverse at ``(w, λ) = (1, 0)`` and,
without any iteration, the transpose at ``(0, 1)``.
"""

import torch
from torch import Tensor, nn

from targetprop.decoders.layer import Inverse
from targetprop.decoders.nature import Jacobian
from targetprop.inversion import Map, per_sample
from targetprop.layers import LayerRecord
from targetprop.precision import at_least_float32, is_cast, no_autocast


class LinearisedDecoder(nn.Module):
    """``J_fᵀ (w J_f J_fᵀ + λ I)⁻¹`` at the forward activation, matrix-free.

    Args:
        w: weight of the inverse; 0 is the transpose divided by ``λ``, 1 the damped pseudo-inverse.
        damping: ``λ ≥ 0``; 0 needs ``w > 0``.
        max_steps: most steps of conjugate gradients.
        tolerance: relative residual at which a sample is solved; a few rounding errors if None.
    """

    def __init__(self, w: float, damping: float, max_steps: int = 200, tolerance: float | None = None) -> None:
        """Keep the settings."""
        super().__init__()
        self.w, self.damping, self.max_steps, self.tolerance = w, damping, max_steps, tolerance

    def bind(self, record: LayerRecord) -> Inverse:
        """Bind to one forward pass."""
        return self.bind_map(record.f, record.x, record.h)

    def bind_map(self, f: Map, x0: Tensor, y0: Tensor) -> Inverse:
        """Bind to any map."""
        if is_cast(x0):
            x0, y0 = at_least_float32(x0), at_least_float32(y0)
        with no_autocast(x0):
            jacobian = Jacobian(f, x0)

        def linear(delta: Tensor) -> Tensor:
            with no_autocast(x0):
                return solve(delta.to(x0.dtype))

        def solve(delta: Tensor) -> Tensor:
            rhs = jacobian.pull(delta)
            if self.w == 0:
                return rhs / self.damping
            # At unit scale, so that squares of tiny changes do not underflow.
            size = per_sample(rhs.flatten(1).abs().amax(1), rhs)
            scaled = rhs / torch.where(size > 0, size, torch.ones_like(size))
            return size * self._solve(jacobian, scaled)

        return Inverse(lambda y: x0 + linear(y - y0), lambda y, change: linear(change))

    def _solve(self, jacobian: Jacobian, rhs: Tensor) -> Tensor:
        def apply(v: Tensor) -> Tensor:
            return self.w * jacobian.pull(jacobian.push(v)) + self.damping * v

        def dot(a: Tensor, b: Tensor) -> Tensor:
            return (a * b).flatten(1).sum(1)

        relative = 8 * torch.finfo(rhs.dtype).eps if self.tolerance is None else self.tolerance
        x, r, p = torch.zeros_like(rhs), rhs, rhs
        rr = dot(r, r)
        stop = rr * relative**2
        for _ in range(min(self.max_steps, 2 * rhs.shape[1:].numel())):
            active = rr > stop
            if not bool(active.any()):
                break
            ap = apply(p)
            curvature = dot(p, ap)
            step = torch.where(active & (curvature > 0), rr / curvature, torch.zeros_like(rr))
            x = x + per_sample(step, p) * p
            r = r - per_sample(step, p) * ap
            new = dot(r, r)
            p = r + per_sample(torch.where(active, new / rr, torch.zeros_like(rr)), p) * p
            rr = torch.where(active, new, rr)
        return x
