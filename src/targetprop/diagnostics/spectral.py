r"""Largest singular values of Jacobians that are never formed: power iteration on ``JᵀJ`` by JVP and VJP.

>>> import torch
>>> A = torch.tensor([[3.0, 0.0], [4.0, 0.0]])
>>> spectral_norm(lambda x: x @ A.T, torch.zeros(1, 2))
tensor([5.])
"""

import torch
from torch import Tensor

from targetprop.inversion import Map, per_sample, sample_norm


def spectral_norm(f: Map, x: Tensor, steps: int = 40) -> Tensor:
    """Compute ``‖J_f(x)‖₂``, sample by sample.

    Args:
        f: the map, differentiable, one sample's output depending on that sample alone.
        x: where it is differentiated, shape ``(n, …)``.
        steps: power iterations; the estimate approaches the norm from below.

    Returns:
        Shape ``(n,)``.
    """
    generator = torch.Generator(device=x.device).manual_seed(0)
    v = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    pull = torch.func.vjp(f, x)[1]
    norm = torch.zeros_like(sample_norm(v))
    for _ in range(steps):
        v = _unit(v)
        image = torch.func.jvp(f, (x,), (v,))[1]
        norm = sample_norm(image)
        v = pull(image)[0]
    return norm


def _unit(v: Tensor) -> Tensor:
    size = sample_norm(v)
    return v / per_sample(torch.where(size > 0, size, torch.ones_like(size)), v)
