r"""Decoders of differentiable modules without parameters: their own first-order expansion, transposed.

    ``g(y) = x₀ + J_fᵀ (y − f(x₀))``

with ``x₀`` the module's input in the forward pass: at the forward output it returns the forward input, and its linear
part is the module's pullback, one vector-Jacobian product. There are no weights to read, so nothing has to be learned;
what is learned in a layer stands in the maps beside it. The softmax of attention and fixed transforms are of this kind.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]

from targetprop.decoders.registry import ModuleDecoder, Style, find_builder, register_decoder
from targetprop.layers.replay import ReplayState, record_input, register_replay

_M = TypeVar("_M", bound=type[nn.Module])


class Pullback(ModuleDecoder):
    """``g(y) = x₀ + Jᵀ (y − y₀)`` of a module without parameters, the same in every style.

    Args:
        module: the module.
    """

    affine = True

    def __init__(self, module: nn.Module) -> None:
        """Keep a reference that is not a submodule: the module stays the user's."""
        super().__init__()
        self._map = (module,)

    def forward(self, y: Tensor, state: ReplayState) -> Tensor:
        """Decode; see `ModuleDecoder.forward`."""
        return state.per_sample[0] + self._pull(y, state, change=False)

    def linear(self, change: Tensor, state: ReplayState) -> Tensor:
        """Apply ``Jᵀ``; see `ModuleDecoder.linear`."""
        return self._pull(change, state, change=True)

    def _pull(self, values: Tensor, state: ReplayState, *, change: bool) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative, which training through it needs
            y0, pull, *_ = torch.func.vjp(self._map[0], state.per_sample[0])
            return pull((values if change else values - y0).to(y0.dtype))[0]


def register_pullback(kind: _M) -> _M:
    """Register a class of differentiable modules without parameters: they are decoded by their own pullback.

    The module must be a function of its input alone. Registered are how it is repeated (`register_replay`; its input is
    kept for a step) and, for every style, the decoder ``g(y) = x₀ + J_fᵀ (y − f(x₀))`` (`register_decoder`).

    Args:
        kind: the module class; subclasses follow it unless registered themselves.

    Returns:
        The class, so that this serves as a decorator.

    A class with a decoder or a replay rule is refused with `ValueError`; so is, when an engine is made, a module that
    has parameters, holds dropout or a batch norm, or that autograd cannot differentiate.

    >>> import torch, targetprop as tp
    >>> from torch import nn
    >>> @tp.register_pullback
    ... class Square(nn.Module):
    ...     def forward(self, x):
    ...         return x * x
    >>> layers = [nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), Square())]
    >>> tp.check(layers, torch.zeros(2, 3)).layers[1].inverse
    'mirrored'
    """
    register = register_decoder(kind)  # refuses before anything is registered
    register_replay(kind, record_input, lambda module, x, state: module(x))
    register(_build)
    return kind


def pulled_back(module: nn.Module) -> bool:
    """Say whether a module is decoded by its own pullback."""
    return find_builder(module) is _build


def _build(module: nn.Module, x: Tensor, y: Tensor, style: Style) -> nn.Module:
    kind = type(module).__name__
    if any(True for _ in module.parameters()):
        raise ValueError(
            f"{kind} was registered with register_pullback and has parameters, which its pullback would read; move"
            " them to modules of their own, such as nn.Linear, or register another decoder with register_decoder"
        )
    hidden = next((part for part in module.modules() if isinstance(part, _DropoutNd | _BatchNorm)), None)
    if hidden is not None:
        raise ValueError(
            f"{kind} was registered with register_pullback and holds {type(hidden).__name__}, whose masks or statistics"
            " cannot be repeated from outside; make it a module of the layer in its own right"
        )
    return Pullback(module)
