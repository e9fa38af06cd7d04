"""Which decoder inverts which module: a registry along the class hierarchy.

A builder makes the inverse of *one* module; `LayerDecoder` strings them together, last module first. A layer with a
module that nobody registered is inverted as a whole by damped least squares (`targetprop.decoders.linearised`).
"""

from collections.abc import Callable
from typing import Literal, TypeVar

from torch import Tensor, nn

from targetprop.layers.replay import ReplayState

Style = Literal["identity", "inverse", "transpose"]
Builder = Callable[[nn.Module, Tensor, Tensor, Style], nn.Module | None]
_B = TypeVar("_B", bound=Callable[..., nn.Module | None])
_BUILDERS: dict[type[nn.Module], Builder] = {}


class ModuleDecoder(nn.Module):
    """Decoder of one module, ``y ↦ x``, that may use the replay state of the forward pass.

    Attributes:
        affine: whether it is affine in ``y``, so that `linear` exists.
        diagonal: whether, besides, its linear part acts on each value alone, up to rearrangement.
    """

    affine: bool = False
    diagonal: bool = False

    def forward(self, y: Tensor, state: ReplayState) -> Tensor:
        """Decode.

        Args:
            y: output of the module, shape ``(n, …)``.
            state: what the module drew or measured in the forward pass.

        Returns:
            An input of the module, shape ``(n, …)``.
        """
        raise NotImplementedError

    def linear(self, change: Tensor, state: ReplayState) -> Tensor:
        """Apply the linear part of an affine decoder.

        Args:
            change: change of the output, shape ``(n, …)``.
            state: what the module drew or measured in the forward pass.

        Returns:
            ``g(y + change) − g(y)``.
        """
        raise NotImplementedError


class PlainDecoder(ModuleDecoder):
    """A user's own ``nn.Module`` as a decoder; nothing is assumed of it.

    Args:
        module: maps outputs to inputs.
    """

    def __init__(self, module: nn.Module) -> None:
        """Wrap the module."""
        super().__init__()
        self.module = module

    def forward(self, y: Tensor, state: ReplayState) -> Tensor:
        """Decode without replay state; see `ModuleDecoder.forward`."""
        return self.module(y)


def register_decoder(kind: type[nn.Module]) -> Callable[[_B], _B]:
    """Register how modules of a class are decoded.

    Args:
        kind: the module class; subclasses follow it unless registered themselves.

    Returns:
        A decorator for a builder ``(module, x, y, style) -> nn.Module``, where ``x`` and ``y`` are an example input and
        output of the module with a batch dimension. The result maps outputs to inputs; None leaves the layer to the
        generic fallback.

    Raises:
        ValueError: the class has a decoder already.

    >>> import torch, targetprop as tp
    >>> from torch import nn
    >>> class Scale(nn.Module):
    ...     def forward(self, x):
    ...         return 3 * x
    >>> @tp.register_decoder(Scale)
    ... def scale_decoder(module, x, y, style):
    ...     return nn.Linear(y.shape[1], x.shape[1])
    """
    if kind in _BUILDERS:
        raise ValueError(f"{kind.__name__} has a decoder already; derive a class from it to register another one")

    def register(builder: _B) -> _B:
        _BUILDERS[kind] = builder
        return builder

    return register


def find_builder(module: nn.Module) -> Builder | None:
    """Look a module's builder up along its class hierarchy."""
    return next((_BUILDERS[kind] for kind in type(module).__mro__ if kind in _BUILDERS), None)
