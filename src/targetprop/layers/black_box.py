"""Black boxes: modules that autograd cannot differentiate, such as sign, round or a call into another library.

Autograd says of them nothing, or zero, and neither is an error: a network with one would silently not learn. A module
is a black box here if its output changes with its input although its vector-Jacobian product is absent or zero, both at
the example and at random inputs.

>>> import torch
>>> from torch import nn
>>> class Sign(nn.Module):
...     def forward(self, x):
...         return x.sign()
>>> example = torch.zeros(2, 3)
>>> is_black_box(Sign(), example), is_black_box(nn.ReLU(), example)
(True, False)
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def is_black_box(module: nn.Module, x: Tensor) -> bool:
    """Try whether autograd can differentiate a module."""
    if not x.is_floating_point() or _pulls(module, x):
        return False
    generator = torch.Generator(device=x.device).manual_seed(0)
    a, b = (torch.empty_like(x).normal_(generator=generator) for _ in range(2))
    if _pulls(module, a):
        return False
    with torch.no_grad():
        return not torch.equal(module(a.clone()), module(b.clone()))


def _pulls(module: nn.Module, x: Tensor) -> bool:
    """Whether the vector-Jacobian product exists and is not zero."""
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)
        try:
            y = module(x * 1)
        except RuntimeError:  # it runs on values alone, as NumPy does
            return False
        return reaches(y, [x])


def reaches(y: Tensor, inputs: Sequence[Tensor]) -> bool:
    """Say whether the derivative of an output in any of its inputs exists and is not zero."""
    if not y.requires_grad:
        return False
    weights = torch.linspace(1.0, 2.0, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
    try:
        found = torch.autograd.grad(y, inputs, weights, allow_unused=True)
    except NotImplementedError:  # an operation without a derivative formula
        return False
    return any(part is not None and bool(part.any()) for part in found)
