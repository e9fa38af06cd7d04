r"""What a piece without weights does to its values, found by trying it: no list of functions is complete.

With the piece's Jacobian ``J`` at random inputs and random signs ``s``: ``J Jᵀ`` is diagonal if ``s ∘ J Jᵀ s`` is the
same for all ``s``, and ``J`` itself if ``s ∘ Jᵀ s`` is.

>>> import torch
>>> find_nature(torch.tanh, torch.zeros(4, 3))
Nature(opaque=False, same_shape=True, diagonal=True, moves=True, uneven=False)
>>> find_nature(lambda x: x.flip(1), torch.zeros(4, 3))
Nature(opaque=False, same_shape=True, diagonal=False, moves=True, uneven=False)
>>> find_nature(torch.sign, torch.zeros(4, 3)).opaque
True
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from targetprop.precision import at_least_float32, no_autocast


@dataclass(frozen=True)
class Nature:
    """What is known of a piece.

    Attributes:
        opaque: whether its output follows its input although autograd has no derivative.
        same_shape: whether output and input have the same shape.
        diagonal: whether it acts on each value alone.
        moves: whether it puts each value, scaled, at a place of its own, or drops it.
        uneven: whether ``Jᵀ J`` returns anything but constants, or nothing, for constants; of what is homogeneous, as
            poolings are: elsewhere constants mean nothing.
    """

    opaque: bool
    same_shape: bool
    diagonal: bool = False
    moves: bool = False
    uneven: bool = False


class Jacobian:
    """``J`` and ``Jᵀ`` of a map at one input, of which ``J`` needs a second derivative.

    Args:
        f: the map.
        x: the input.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], x: Tensor) -> None:
        """Run the map."""
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            self.x = x.detach().requires_grad_()
            self.y = f(self.x)

    def pull(self, change: Tensor) -> Tensor:
        """Apply ``Jᵀ``, by a product that can be differentiated in the change."""
        if not self.y.requires_grad:
            return torch.zeros_like(self.x)
        graph = torch.is_grad_enabled() and change.requires_grad
        change = change.to(self.y.dtype)
        (found,) = torch.autograd.grad(self.y, self.x, change, retain_graph=True, create_graph=graph, allow_unused=True)
        return torch.zeros_like(self.x) if found is None else found

    def push(self, change: Tensor) -> Tensor:
        """Apply ``J``."""
        with torch.enable_grad():
            seed = torch.zeros_like(self.y).requires_grad_()
            moved = self.pull(seed)
            if not moved.requires_grad:
                return torch.zeros_like(self.y)
            (found,) = torch.autograd.grad(moved, seed, change.to(moved.dtype), allow_unused=True)
        return torch.zeros_like(self.y) if found is None else found


_TRIES = 3  # where windows overlap, they may select a value of their own each by chance


def find_nature(f: Callable[[Tensor], Tensor], like: Tensor) -> Nature:
    """Try a piece on random inputs.

    Args:
        f: the piece.
        like: an input, of whose shape, type and device others are drawn.

    Returns:
        What it does.
    """
    generator = torch.Generator(device=like.device).manual_seed(0)

    def draw(shape: torch.Size) -> Tensor:
        return torch.empty(shape, dtype=like.dtype, device=like.device).normal_(generator=generator)

    with no_autocast(like):
        nature = _try(f, draw, like.shape)
        for _ in range(_TRIES - 1):
            if nature.diagonal or not nature.moves:
                break
            nature = _try(f, draw, like.shape)
    return nature


def _try(f: Callable[[Tensor], Tensor], draw: Callable[[torch.Size], Tensor], shape: torch.Size) -> Nature:
    x = draw(shape)
    try:
        jacobian = Jacobian(f, x)
        signs = [draw(jacobian.y.shape).sign() for _ in range(2)]
        back = [jacobian.pull(s) for s in signs]
    except RuntimeError:  # it has no derivative, or runs on values alone
        return _without_derivative(f, x, draw(shape))
    if not any(bool(b.any()) for b in back):
        return _without_derivative(f, x, draw(shape))
    same = jacobian.y.shape == x.shape
    diagonal = same and _agree(*(s * b for s, b in zip(signs, back, strict=True)))
    try:
        there = [s * jacobian.push(b) for s, b in zip(signs, back, strict=True)]
        here = [s * jacobian.pull(jacobian.push(s)) for s in (draw(shape).sign() for _ in range(2))]
        kept = jacobian.pull(jacobian.push(torch.ones_like(x)))
    except RuntimeError:  # no second derivative
        return Nature(False, same, diagonal)
    even = _agree(kept, (kept.abs() > _TOL).to(kept))
    return Nature(False, same, diagonal, _agree(*there) and _agree(*here), not even and _is_homogeneous(f, x))


@torch.no_grad()
def _is_homogeneous(f: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    origin = f(torch.zeros_like(x))
    return _agree(f(2 * x) - origin, 2 * (f(x) - origin))


@torch.no_grad()
def _without_derivative(f: Callable[[Tensor], Tensor], a: Tensor, b: Tensor) -> Nature:
    y = f(a.clone())
    return Nature(not torch.equal(y, f(b.clone())), y.shape == a.shape)


_TOL = 1e-3


def _agree(a: Tensor, b: Tensor) -> bool:
    a, b = at_least_float32(a), at_least_float32(b)
    size = float(b.abs().amax())
    return isfinite(size) and torch.allclose(a, b, rtol=_TOL, atol=_TOL * size)
