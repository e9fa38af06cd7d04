r"""Learned decoders of single maps, ``g(y) = V y + c``; they never read the forward weights.

    a product ``W a``    ``V`` of shape (inputs, outputs)
    a convolution        ``V`` of the shape of ``W``, applied as the convolution's transpose is, and the other way round

With a convolution's ``V`` equal to ``W`` the linear part is ``Jᵀ`` exactly, whatever the stride, padding, dilation and
groups; sizes that the stride does not divide are restored.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from targetprop.layers import MapUse
from targetprop.layers.convolution import Convolution, settings, spread


class MapDecoder(nn.Module):
    """What decoders of maps share: a weight ``V`` and a bias ``c``.

    Args:
        shape: shape of the weight.
        bias: length of the bias.
        fan: how many values each decoded value is a sum of.
        like: a tensor of the type and on the device wanted.
    """

    def __init__(self, shape: torch.Size | tuple[int, ...], bias: int, fan: float, like: Tensor) -> None:
        """Draw weight and bias as ``nn.Linear`` does for that fan."""
        super().__init__()
        bound = 1 / math.sqrt(max(1.0, fan))
        self.weight = nn.Parameter(torch.empty(shape, dtype=like.dtype, device=like.device).uniform_(-bound, bound))
        self.bias = nn.Parameter(self.weight.new_empty(bias).uniform_(-bound, bound))

    @abstractmethod
    def bind(self, use: MapUse, x: Tensor) -> "BoundMap":
        """Bind to the use of the forward weight in one pass.

        Args:
            use: the use, of which settings are read.
            x: the input of the map in that pass, for its shape.

        Returns:
            ``g``.
        """


@dataclass(frozen=True, eq=False)
class BoundMap:
    """``g(y) = V y + c`` for one pass.

    Attributes:
        weight: ``V``.
        bias: ``c``.
        axis: the axis of the input that the bias belongs to.
        back: ``(y, V) ↦ V y``.
        push: ``(x, V) ↦ Vᵀ x``.
        outer: ``(x, y) ↦ ∂⟨x, V y⟩/∂V``.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    axis: int
    back: Callable[[Tensor, Tensor], Tensor]
    push: Callable[[Tensor, Tensor], Tensor]
    outer: Callable[[Tensor, Tensor], Tensor]

    affine = True
    moves = False

    def __call__(self, y: Tensor) -> Tensor:
        """Decode."""
        x = self.linear(y)
        return x + (self.bias if self.axis == -1 else self.bias.view(-1, *[1] * (x.dim() - 2)))

    def linear(self, change: Tensor) -> Tensor:
        """Apply ``V``."""
        return self.back(change, self.weight)


class LinearDecoder(MapDecoder):
    """Decoder of a product with a matrix.

    Args:
        outputs: width of the map's output.
        inputs: width of its input.
        like: a tensor of the type and on the device wanted.
    """

    def __init__(self, outputs: int, inputs: int, like: Tensor) -> None:
        """Draw ``V`` and ``c``."""
        super().__init__((inputs, outputs), inputs, outputs, like)

    def bind(self, use: MapUse, x: Tensor) -> BoundMap:
        """Bind; see `MapDecoder.bind`."""
        return BoundMap(
            self.weight,
            self.bias,
            -1,
            functional.linear,
            lambda x, v: x @ v,
            lambda x, y: x.flatten(0, -2).T @ y.flatten(0, -2),
        )


class ConvDecoder(MapDecoder):
    """Decoder of a convolution, or of a transposed one.

    Args:
        use: the use of the forward weight; only shape and settings are read.
    """

    def __init__(self, use: MapUse) -> None:
        """Draw ``V`` and ``c``."""
        given, shape = settings(use), use.weight.shape
        taps, groups = math.prod(shape[2:]), given["groups"]
        if use.site.kind == "conv":  # taps that reach one input, on average
            stride = math.prod(spread(given["stride"], len(shape) - 2))
            fan, channels = max(1.0, taps / stride) * shape[0] / groups, shape[1] * groups
        else:
            fan, channels = taps * shape[1], shape[0]
        super().__init__(shape, channels, fan, use.weight.detach())

    def bind(self, use: MapUse, x: Tensor) -> BoundMap:
        """Bind; see `MapDecoder.bind`."""
        conv = Convolution(use, x)
        return BoundMap(self.weight, self.bias, 1, conv.back, conv.push, conv.outer)


def map_decoder(use: MapUse, x: Tensor, y: Tensor) -> MapDecoder | None:
    """Make the decoder of a map; None if it is of a kind that has none.

    Args:
        use: the use of the forward weight; its values are not read.
        x: an example of the map's input.
        y: an example of its output.

    Returns:
        The decoder.
    """
    if use.site.kind in ("linear", "matmul") and min(x.dim(), y.dim()) > 1:
        return LinearDecoder(y.shape[-1], x.shape[-1], use.weight.detach())
    if use.site.kind in ("conv", "conv-transpose") and x.dim() == use.weight.dim():
        return ConvDecoder(use)
    return None
