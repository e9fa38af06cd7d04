"""Inverses of monotone activations, ``h ↦ σ⁻¹(h)`` with ``h`` first clamped to the range of ``σ``, by function."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_EDGE = 1e-6
Invert = Callable[[Tensor, Mapping[str, Any]], Tensor]


def _tanh(h: Tensor, given: Mapping[str, Any]) -> Tensor:
    return torch.atanh(h.clamp(-1 + _EDGE, 1 - _EDGE))


def _sigmoid(h: Tensor, given: Mapping[str, Any]) -> Tensor:
    return torch.logit(h, eps=_EDGE)


def _leaky(h: Tensor, given: Mapping[str, Any]) -> Tensor:
    slope = given.get("negative_slope", 0.01)
    return torch.where(h > 0, h, h / slope) if slope else h


def _elu(h: Tensor, given: Mapping[str, Any]) -> Tensor:
    alpha = given.get("alpha", 1.0)
    return torch.where(h > 0, h, torch.log1p((h / alpha).clamp(-1 + _EDGE, 0)))


def _softplus(h: Tensor, given: Mapping[str, Any]) -> Tensor:
    beta, h = given.get("beta", 1.0), h.clamp_min(_EDGE)
    return h + torch.log(-torch.expm1(-beta * h)) / beta


def _softsign(h: Tensor, given: Mapping[str, Any]) -> Tensor:
    h = h.clamp(-1 + _EDGE, 1 - _EDGE)
    return h / (1 - h.abs())


_INVERSES: dict[str, tuple[Invert, tuple[str, ...]]] = {  # and the names of the arguments after the input
    "tanh": (_tanh, ()),
    "sigmoid": (_sigmoid, ()),
    "relu": (lambda h, given: h, ()),
    "leaky_relu": (_leaky, ("negative_slope",)),
    "elu": (_elu, ("alpha",)),
    "softplus": (_softplus, ("beta",)),
    "softsign": (_softsign, ()),
}


def find_inverse(func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Callable[[Tensor], Tensor] | None:
    """Find the inverse of a call.

    Args:
        func: the function.
        args: its positional arguments, the input first.
        kwargs: its keyword arguments.

    Returns:
        The inverse; None if it has none, or none that is known.

    >>> from torch.nn import functional
    >>> find_inverse(functional.leaky_relu, [None, 0.5], {})(torch.tensor([-1.0, 2.0])).tolist()
    [-2.0, 2.0]
    """
    name = func.__name__.rstrip("_")
    if name not in _INVERSES:
        return None
    invert, names = _INVERSES[name]
    given = dict(zip(names, list(args)[1:], strict=False)) | dict(kwargs)
    return lambda h: invert(h, given)
