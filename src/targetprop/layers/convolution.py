"""A convolution as a product with patches of its input, of the size of its kernel."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from targetprop.layers.record import MapUse

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_TRANSPOSE = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


def settings(use: MapUse) -> dict[str, Any]:
    """Read the settings of a convolution off its call."""
    assert use.call is not None
    _, args, kwargs = use.call
    defaults = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}
    names = _CONV if use.site.kind == "conv" else _CONV_TRANSPOSE
    return defaults | dict(zip(names, args, strict=False)) | dict(kwargs)


def spread(value: Any, dims: int) -> tuple[int, ...]:
    """Give a setting to every axis."""
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)


def pads(padding: Any, spans: list[int]) -> list[tuple[int, int]]:
    """Say how many zeros a convolution adds below and above each axis, whose kernel reaches so far."""
    if padding == "same":
        return [(span // 2, span - span // 2) for span in spans]
    each = spread(0 if padding == "valid" else padding, len(spans))
    return [(p, p) for p in each]


def has_patches(use: MapUse) -> bool:
    """Say whether a convolution is one product with patches: of one group, in one or two dimensions, of a batch."""
    dims = use.weight.dim() - 2
    return settings(use)["groups"] == 1 and use.input is not None and dims <= 2 and use.input.dim() == dims + 2


def patches(use: MapUse, samples: slice = slice(None), stride: int = 1) -> Tensor:
    """Write out the patches that a convolution sees, see `has_patches`.

    Args:
        use: the use of its weight.
        samples: of which samples.
        stride: of how many positions one is written out, from the first in each sample.

    Returns:
        A row per sample and position, shape ``(rows, channels · kernel)``.
    """
    assert use.input is not None
    steps, dilation, sides = _geometry(use)
    dims = len(steps)
    a = functional.pad(use.input[samples], [side for each in reversed(sides) for side in each])
    for d, size in enumerate(use.weight.shape[2:]):
        a = a.unfold(2 + d, dilation[d] * (size - 1) + 1, steps[d])[..., :: dilation[d]]
    a = a.permute(0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims))
    if stride > 1:
        some = torch.arange(0, a.shape[1 : 1 + dims].numel(), stride, device=a.device)
        a = a[:, some] if dims == 1 else a[:, some // a.shape[2], some % a.shape[2]]
    return a.reshape(-1, use.weight[0].numel())


class Convolution:
    """The three products of a convolution with the settings of one use, for a weight to be given.

    Args:
        use: the use of a weight; only shape and settings are read.
        x: its input, for the shape, ``(n, channels, …)``.
    """

    def __init__(self, use: MapUse, x: Tensor) -> None:
        """Read the settings."""
        given, (stride, dilation, sides) = settings(use), _geometry(use)
        self._shape, self._weight = x.shape[1:], use.weight.shape
        # A kernel of even length under padding "same" has one more zero on the upper side: the input is lengthened.
        self._more = [high - low for low, high in sides]
        transposed, more = use.site.kind == "conv-transpose", spread(given["output_padding"], len(stride))
        self._settings: Any = (stride, [low for low, _ in sides], dilation, transposed, more, given["groups"])

    def back(self, y: Tensor, weight: Tensor) -> Tensor:
        """Carry changes of the output to the input, by the transpose."""
        x = y.new_empty(1).expand(len(y), self._shape[0], *self._sizes())
        found = torch.ops.aten.convolution_backward(
            y, x, weight.to(y.dtype), None, *self._settings, [True, False, False]
        )[0]
        return found[(..., *(slice(size) for size in self._shape[1:]))] if any(self._more) else found

    def push(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve."""
        return torch.ops.aten.convolution(self._lengthened(x), weight.to(x.dtype), None, *self._settings)

    def outer(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum ``y aᵀ`` over samples and positions, with the patches ``a`` of ``x``, shape of the weight."""
        weight = y.new_empty(1).expand(self._weight)
        x = self._lengthened(x).to(y.dtype)
        return torch.ops.aten.convolution_backward(y, x, weight, None, *self._settings, [False, True, False])[1]

    def _sizes(self) -> list[int]:
        return [size + more for size, more in zip(self._shape[1:], self._more, strict=True)]

    def _lengthened(self, x: Tensor) -> Tensor:
        return functional.pad(x, [p for more in reversed(self._more) for p in (0, more)]) if any(self._more) else x


def _geometry(use: MapUse) -> tuple[tuple[int, ...], tuple[int, ...], list[tuple[int, int]]]:
    """Give the stride, the dilation and the zeros on both sides of every axis."""
    given, kernel = settings(use), use.weight.shape[2:]
    steps, dilation = (spread(given[name], len(kernel)) for name in ("stride", "dilation"))
    return steps, dilation, pads(given["padding"], [d * (size - 1) for d, size in zip(dilation, kernel, strict=True)])
