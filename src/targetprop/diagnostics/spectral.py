r"""Largest singular values of Jacobians that are never formed: power iteration on ``JᵀJ`` by JVP and VJP.

The JVP is the derivative of the VJP ``w ↦ Jᵀw``, so that both run on one graph, which is built once.

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
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        y = f(x)
        w = torch.zeros_like(y, requires_grad=True)
        pulled = _grad(y, x, w, create_graph=True)  # Jᵀw, linear in w: differentiated once more, it gives J v
    generator = torch.Generator(device=x.device).manual_seed(0)
    v = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    norm = torch.zeros_like(sample_norm(v))
    for _ in range(steps):
        image = _grad(pulled, w, _unit(v))
        norm = sample_norm(image)
        v = _grad(y, x, image)
    return norm


def _grad(y: Tensor, x: Tensor, v: Tensor, *, create_graph: bool = False) -> Tensor:
    return torch.autograd.grad(y, x, v, retain_graph=True, create_graph=create_graph, materialize_grads=True)[0]


def _unit(v: Tensor) -> Tensor:
    size = sample_norm(v)
    return v / per_sample(torch.where(size > 0, size, torch.ones_like(size)), v)
