r"""Decoders of pooling, up-sampling and pixel shuffling: maps that have no parameters.

Max pooling selects: the places that the forward pass selected travel in the record, and decoding puts each value back
at its own. Where windows overlap, a place may have been selected more than once: "transpose" adds the values up, which
is ``Jᵀ`` at the forward selection, the other styles take their mean.

The others are linear, ``y = Jx``: "transpose" is ``Jᵀ``, the other styles ``D Jᵀ`` with the diagonal
``D = diag(Jᵀ J 1)⁻¹``, which returns constants exactly and, for windows that do not overlap, is the pseudo-inverse.

>>> x = torch.tensor([[[1.0, 4.0, 3.0, 2.0]]])
>>> places = torch.tensor([[[1, 2]]])
>>> MaxPoolDecoder(nn.MaxPool1d(2), x, "inverse")(torch.tensor([[[4.0, 3.0]]]), ReplayState((places,))).tolist()
[[[0.0, 4.0, 3.0, 0.0]]]
>>> LinearMapDecoder(nn.AvgPool1d(2), x, "inverse")(torch.tensor([[[2.5, 2.5]]]), ReplayState()).tolist()
[[[2.5, 2.5, 2.5, 2.5]]]
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,  # pyright: ignore[reportPrivateUsage]
    _AdaptiveMaxPoolNd,  # pyright: ignore[reportPrivateUsage]
    _AvgPoolNd,  # pyright: ignore[reportPrivateUsage]
    _MaxPoolNd,  # pyright: ignore[reportPrivateUsage]
)

from targetprop.decoders.registry import ModuleDecoder, Style, register_decoder
from targetprop.layers.replay import ReplayState, register_replay

_SMALL = 1e-6
_POOL: dict[type[nn.Module], tuple[Callable[..., Any], int]] = {  # and how many axes it pools
    nn.MaxPool1d: (functional.max_pool1d, 1),
    nn.MaxPool2d: (functional.max_pool2d, 2),
    nn.MaxPool3d: (functional.max_pool3d, 3),
    nn.AdaptiveMaxPool1d: (functional.adaptive_max_pool1d, 1),
    nn.AdaptiveMaxPool2d: (functional.adaptive_max_pool2d, 2),
    nn.AdaptiveMaxPool3d: (functional.adaptive_max_pool3d, 3),
}


class MaxPoolDecoder(ModuleDecoder):
    """Put each value at the place that was selected for it.

    Args:
        module: the pooling module; only its settings are read.
        x: an example of its input, shape ``(n, channels, …)``.
        style: "transpose" adds values up that share a place, the others take their mean.
    """

    affine = True

    def __init__(self, module: nn.Module, x: Tensor, style: Style) -> None:
        """Keep the size of the input."""
        super().__init__()
        self.size, self.style = x.shape[2:], style
        self.overlaps = not isinstance(module, _MaxPoolNd) or _overlaps(module)

    def forward(self, y: Tensor, state: ReplayState) -> Tensor:
        """Decode; see `ModuleDecoder.forward`."""
        return self.linear(y, state)

    def linear(self, change: Tensor, state: ReplayState) -> Tensor:
        """Scatter the values; see `ModuleDecoder.linear`."""
        places, values = state.per_sample[0].flatten(2), change.flatten(2)
        x = values.new_zeros(*values.shape[:2], self.size.numel())
        if not self.overlaps:
            return x.scatter(2, places, values).unflatten(2, self.size)
        if self.style != "transpose":
            count = x.scatter_add(2, places, torch.ones_like(values))
            values = values / count.gather(2, places)
        return x.scatter_add(2, places, values).unflatten(2, self.size)


def _overlaps(module: _MaxPoolNd) -> bool:
    def pair(value: Any) -> tuple[int, ...]:
        return (value,) * 3 if isinstance(value, int) else tuple(value)

    sizes = zip(pair(module.kernel_size), pair(module.stride), pair(module.dilation), strict=False)
    return any(dilation * (kernel - 1) + 1 > stride for kernel, stride, dilation in sizes)


class LinearMapDecoder(ModuleDecoder):
    """``Jᵀ``, or ``D Jᵀ``, of a linear module without parameters, by autograd.

    Args:
        module: the module.
        x: an example of its input, shape ``(n, …)``.
        style: "transpose" is ``Jᵀ``, the others ``D Jᵀ``.
    """

    affine = True
    gain: Tensor | None

    def __init__(self, module: nn.Module, x: Tensor, style: Style) -> None:
        """Keep a reference to the module and find ``D``."""
        super().__init__()
        self.shape, self._map = x.shape[1:], (module,)
        self.register_buffer("gain", None, persistent=False)
        if style != "transpose":
            reached = self._pull(module(torch.ones_like(x[:1])))
            self.gain = reached.reciprocal().masked_fill(reached.abs() < _SMALL, 0.0)

    def forward(self, y: Tensor, state: ReplayState) -> Tensor:
        """Decode; see `ModuleDecoder.forward`."""
        return self.linear(y, state)

    def linear(self, change: Tensor, state: ReplayState) -> Tensor:
        """Apply the map; see `ModuleDecoder.linear`."""
        x = self._pull(change)
        return x if self.gain is None else x * self.gain

    def _pull(self, y: Tensor) -> Tensor:
        return torch.func.vjp(self._map[0], y.new_zeros(len(y), *self.shape))[1](y)[0]


class ShuffleDecoder(ModuleDecoder):
    """Undo a permutation of values.

    Args:
        undo: the inverse of the module.
    """

    affine = True  # not diagonal: values change places, not only shape

    def __init__(self, undo: nn.Module) -> None:
        """Keep the inverse."""
        super().__init__()
        self.undo = undo

    def forward(self, y: Tensor, state: ReplayState) -> Tensor:
        """Decode; see `ModuleDecoder.forward`."""
        return self.undo(y)

    def linear(self, change: Tensor, state: ReplayState) -> Tensor:
        """Permute; see `ModuleDecoder.linear`."""
        return self.undo(change)


def _pool(module: nn.Module) -> tuple[Callable[..., Any], int]:
    return next(_POOL[kind] for kind in type(module).__mro__ if kind in _POOL)


def _record_max(module: Any, x: Tensor) -> tuple[Tensor, ReplayState]:
    if module.return_indices:
        return module(x), ReplayState()  # a tuple, which the forward pass refuses
    pool, _ = _pool(module)
    if isinstance(module, _MaxPoolNd):
        y, places = pool(
            x, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode, return_indices=True
        )
    else:
        y, places = pool(x, module.output_size, return_indices=True)
    return y, ReplayState(per_sample=(places,))


for _kind in _POOL:
    register_replay(_kind, _record_max, lambda module, x, state: module(x))


@register_decoder(_MaxPoolNd)
@register_decoder(_AdaptiveMaxPoolNd)
def _build_max(module: nn.Module, x: Tensor, y: Tensor, style: Style) -> nn.Module | None:
    with_channels = x.dim() == 2 + _pool(module)[1]  # else PyTorch takes samples for channels, and places have no row
    return MaxPoolDecoder(module, x, style) if with_channels else None


@register_decoder(_AvgPoolNd)
@register_decoder(_AdaptiveAvgPoolNd)
@register_decoder(nn.Upsample)
def _build_linear_map(module: nn.Module, x: Tensor, y: Tensor, style: Style) -> nn.Module:
    return LinearMapDecoder(module, x, style)


@register_decoder(nn.PixelShuffle)
def _build_shuffle(module: nn.PixelShuffle, x: Tensor, y: Tensor, style: Style) -> nn.Module:
    return ShuffleDecoder(nn.PixelUnshuffle(module.upscale_factor))


@register_decoder(nn.PixelUnshuffle)
def _build_unshuffle(module: nn.PixelUnshuffle, x: Tensor, y: Tensor, style: Style) -> nn.Module:
    return ShuffleDecoder(nn.PixelShuffle(module.downscale_factor))
