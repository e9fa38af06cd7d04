"""Decoders that users give to classes of modules of their own."""

from collections.abc import Callable
from typing import Literal, TypeVar

from torch import Tensor, nn

Style = Literal["identity", "inverse", "transpose", "forward"]
Builder = Callable[[nn.Module, Tensor, Tensor, Style], nn.Module]
_B = TypeVar("_B", bound=Callable[..., nn.Module])
_BUILDERS: dict[type[nn.Module], Builder] = {}


def register_decoder(kind: type[nn.Module]) -> Callable[[_B], _B]:
    """Register how modules of a class are decoded by methods that learn decoders.

    Such a module counts as one call, whatever it calls inside; autograd need not be able to differentiate it.

    Args:
        kind: the module class; subclasses follow it unless registered themselves.

    Returns:
        A decorator for a builder ``(module, x, y, style) -> nn.Module``, where ``x`` and ``y`` are an example input and
        output of the module with a batch dimension. The result maps outputs to inputs.

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


def registered() -> tuple[type[nn.Module], ...]:
    """List the classes that have a decoder."""
    return tuple(_BUILDERS)


def find_builder(module: nn.Module) -> Builder | None:
    """Look a module's builder up along its class hierarchy."""
    return next((_BUILDERS[kind] for kind in type(module).__mro__ if kind in _BUILDERS), None)
