r"""Decoders of convolutions: learned maps of their own, which never read the forward weights.

    Conv            ``g(y) = V ⋆ᵀ y + c``: a transposed convolution, ``V`` of the shape of the forward weight
    ConvTranspose   ``g(y) = V ⋆ y + c``: a convolution, likewise

With ``V`` equal to the forward weight the linear part is ``J_fᵀ`` exactly, whatever the stride, padding, dilation and
groups; sizes that the stride does not divide are restored. Padding with anything but zeros folds the border back by the
transpose of that padding.

>>> import torch
>>> from torch import nn
>>> conv, x = nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.ones(2, 3, 6, 5)
>>> decoder = ConvDecoder(conv, x)
>>> decoder(conv(x), ReplayState()).shape
torch.Size([2, 3, 6, 5])
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional, grad
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd  # pyright: ignore[reportPrivateUsage]

from targetprop.decoders.registry import ModuleDecoder, Style, register_decoder
from targetprop.layers.replay import ReplayState, record_input, register_replay

_CONVOLVE: dict[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_WEIGHT_GRADIENT: dict[int, Callable[..., Tensor]] = {
    1: grad.conv1d_weight,
    2: grad.conv2d_weight,
    3: grad.conv3d_weight,
}


class LearnedMap(ModuleDecoder):
    """What the two decoders share: a weight of the forward weight's shape and a bias per input channel.

    Args:
        module: the convolution; only its settings are read.
        x: an example of its input, shape ``(n, channels, …)``.
        fan: how many values each decoded value is a sum of.
    """

    affine = True

    def __init__(self, module: _ConvNd, x: Tensor, fan: float) -> None:
        """Draw weight and bias as ``nn.Linear`` does for that fan."""
        super().__init__()
        bound = 1 / math.sqrt(fan)
        self.weight = nn.Parameter(torch.empty_like(module.weight).uniform_(-bound, bound))
        self.bias = nn.Parameter(module.weight.new_empty(x.shape[1]).uniform_(-bound, bound))
        self.size = x.shape[2:]

    def forward(self, y: Tensor, state: ReplayState) -> Tensor:
        """Decode; see `ModuleDecoder.forward`."""
        return self.linear(y, state) + self.bias.view(-1, *[1] * (y.dim() - 2))

    @abstractmethod
    def transpose(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Apply ``Vᵀ``."""

    @abstractmethod
    def weight_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Differentiate ``⟨x, V y⟩`` in ``V``."""


class ConvDecoder(LearnedMap):
    """Transposed convolution that restores the size of the example's input.

    Args:
        module: the convolution; only its settings are read.
        x: an example of its input, shape ``(n, channels, …)``.
    """

    def __init__(self, module: _ConvNd, x: Tensor) -> None:
        """Work out the paddings and draw the weights."""
        taps = math.prod(module.kernel_size) / math.prod(module.stride)  # that reach one input, on average
        super().__init__(module, x, max(1.0, taps) * module.out_channels / module.groups)
        self.reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        low, high = _padding(module, self.reach)
        self.fold = None if module.padding_mode == "zeros" else Fold(self.size, low, high, module.padding_mode)
        if self.fold is not None:  # decode the padded input
            self.size, low, high = self.fold.padded, [0] * len(low), [0] * len(low)
        self.more = [b - a for a, b in zip(low, high, strict=True)]  # zeros that only the upper side has
        self.padding, self.stride = low, module.stride
        self.groups, self.dilation = module.groups, module.dilation

    def linear(self, change: Tensor, state: ReplayState) -> Tensor:
        """Apply ``V ⋆ᵀ``; see `ModuleDecoder.linear`."""
        sizes = zip(self.size, change.shape[2:], self.stride, self.padding, self.reach, strict=True)
        missing = [n - ((m - 1) * s - 2 * p + r + 1) for n, m, s, p, r in sizes]
        x = _TRANSPOSED[len(self.size)](
            change, self.weight, None, self.stride, self.padding, [max(0, m) for m in missing], self.groups,
            self.dilation,
        )  # fmt: skip
        return _crop(x, self.size) if self.fold is None else self.fold.transpose(_crop(x, self.size))

    def weight_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Correlate; see `LearnedMap.weight_gradient`."""
        settings = self.stride, self.padding, self.dilation, self.groups
        return _WEIGHT_GRADIENT[len(self.size)](self._padded(x), self.weight.shape, y, *settings)

    def transpose(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Convolve; see `LearnedMap.transpose`."""
        settings = self.stride, self.padding, self.dilation, self.groups
        return _CONVOLVE[len(self.size)](self._padded(x), self.weight if weight is None else weight, None, *settings)

    def _padded(self, x: Tensor) -> Tensor:
        return _grow(x, self.more) if self.fold is None else self.fold.pad(x)


class ConvTransposeDecoder(LearnedMap):
    """Convolution with the settings of the transposed one.

    Args:
        module: the transposed convolution; only its settings are read.
        x: an example of its input, shape ``(n, channels, …)``.
    """

    def __init__(self, module: _ConvTransposeNd, x: Tensor) -> None:
        """Keep the settings and draw the weights."""
        super().__init__(module, x, math.prod(module.kernel_size) * module.out_channels / module.groups)
        self.stride, self.padding = module.stride, module.padding
        self.groups, self.dilation = module.groups, module.dilation
        with torch.no_grad():
            self.decoded = module(x[:1]).shape[2:]
            full = self._full(x.new_zeros(1, module.out_channels, *self.decoded), self.weight).shape[2:]
        self.cut = [a - b for a, b in zip(full, self.size, strict=True)]  # what output padding adds on the upper side

    def linear(self, change: Tensor, state: ReplayState) -> Tensor:
        """Apply ``V ⋆``; see `ModuleDecoder.linear`."""
        return self._convolve(change, self.weight)

    def _full(self, y: Tensor, weight: Tensor) -> Tensor:
        return _CONVOLVE[len(self.size)](y, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def _convolve(self, y: Tensor, weight: Tensor) -> Tensor:
        return _crop(self._full(y, weight), self.size)

    def weight_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Correlate; see `LearnedMap.weight_gradient`."""
        settings = self.stride, self.padding, self.dilation, self.groups
        return _WEIGHT_GRADIENT[len(self.size)](y, self.weight.shape, _grow(x, self.cut), *settings)

    def transpose(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Differentiate; see `LearnedMap.transpose`."""
        shape = len(x), self.weight.shape[1] * self.groups, *self.decoded
        with torch.enable_grad():
            y = x.new_zeros(shape).requires_grad_()
            return torch.autograd.grad(self._convolve(y, self.weight if weight is None else weight), y, x)[0]


class Fold(nn.Module):
    """Transpose of padding that repeats values: each padded value is added to the one that it repeats.

    Args:
        size: sizes of the axes before padding.
        low: padding below each axis.
        high: padding above each axis.
        mode: "reflect", "replicate" or "circular".
    """

    source: Tensor

    def __init__(self, size: Sequence[int], low: Sequence[int], high: Sequence[int], mode: str) -> None:
        """Find where each padded value comes from."""
        super().__init__()
        self.size, self.mode = tuple(size), mode
        places = torch.arange(math.prod(size), dtype=torch.float64).view(1, 1, *size)
        self.widths = [width for pair in reversed(list(zip(low, high, strict=True))) for width in pair]
        places = self.pad(places)
        self.padded = places.shape[2:]
        self.register_buffer("source", places.flatten().long(), persistent=False)

    def pad(self, x: Tensor) -> Tensor:
        """Repeat values around the border."""
        return functional.pad(x, self.widths, mode=self.mode)

    def transpose(self, padded: Tensor) -> Tensor:
        """Add each value to its source."""
        x = padded.new_zeros(*padded.shape[:2], math.prod(self.size))
        return x.index_add(2, self.source, padded.flatten(2)).unflatten(2, self.size)


def _padding(module: _ConvNd, reach: list[int]) -> tuple[list[int], list[int]]:
    """Zeros below and above each axis."""
    if module.padding == "same":
        return [r // 2 for r in reach], [r - r // 2 for r in reach]
    widths = [0] * len(reach) if module.padding == "valid" else [int(p) for p in module.padding]
    return widths, widths


def _grow(x: Tensor, more: Sequence[int]) -> Tensor:
    """Add zeros on the upper side of each axis."""
    return functional.pad(x, [width for extra in reversed(more) for width in (0, extra)]) if any(more) else x


def _crop(x: Tensor, size: Sequence[int]) -> Tensor:
    for axis, length in enumerate(size, start=2):
        if x.shape[axis] > length:
            x = x.narrow(axis, 0, length)
    return x


register_replay(_ConvNd, record_input, lambda module, x, state: module(x))


@register_decoder(_ConvNd)
def _build_conv(module: Any, x: Tensor, y: Tensor, style: Style) -> nn.Module:
    return ConvDecoder(module, x)


@register_decoder(_ConvTransposeNd)
def _build_conv_transpose(module: Any, x: Tensor, y: Tensor, style: Style) -> nn.Module:
    return ConvTransposeDecoder(module, x)
