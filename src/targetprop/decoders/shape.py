"""Decoders of modules that move values without changing them: Flatten, Unflatten, Identity, Dropout."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]

from targetprop.decoders.registry import ModuleDecoder, Style, register_decoder
from targetprop.layers.replay import ReplayState


class Rearrange(ModuleDecoder):
    """A linear map without parameters, the same in every style.

    Args:
        apply: the map, from outputs to inputs.
    """

    affine = True
    diagonal = True

    def __init__(self, apply: Callable[[Tensor], Tensor]) -> None:
        """Keep the map."""
        super().__init__()
        self.apply_ = apply

    def forward(self, y: Tensor, state: ReplayState) -> Tensor:
        """Decode; see `ModuleDecoder.forward`."""
        return self.apply_(y)

    def linear(self, change: Tensor, state: ReplayState) -> Tensor:
        """Apply the map; see `ModuleDecoder.linear`."""
        return self.apply_(change)


class DropoutDecoder(ModuleDecoder):
    """Undo a dropout mask ``m``: units that were dropped carry no target.

    ``x = m y`` in style "transpose", ``x = y / m`` where ``m > 0`` and 0 elsewhere in the others; the identity in
    eval mode.

    Args:
        style: which of the two.
    """

    affine = True
    diagonal = True

    def __init__(self, style: Style) -> None:
        """Keep the style."""
        super().__init__()
        self.style = style

    def forward(self, y: Tensor, state: ReplayState) -> Tensor:
        """Decode; see `ModuleDecoder.forward`."""
        return self.linear(y, state)

    def linear(self, change: Tensor, state: ReplayState) -> Tensor:
        """Apply the mask; see `ModuleDecoder.linear`."""
        if not state.per_sample:
            return change
        mask = state.per_sample[0]
        return change * (mask if self.style == "transpose" else mask.reciprocal().masked_fill(mask == 0, 0.0))


@register_decoder(nn.Identity)
def _build_identity(module: nn.Module, x: Tensor, y: Tensor, style: Style) -> nn.Module:
    return Rearrange(lambda values: values)


@register_decoder(nn.Flatten)
@register_decoder(nn.Unflatten)
def _build_reshape(module: nn.Module, x: Tensor, y: Tensor, style: Style) -> nn.Module:
    shape = x.shape[1:]
    return Rearrange(lambda values: values.reshape(-1, *shape))


@register_decoder(_DropoutNd)
def _build_dropout(module: nn.Module, x: Tensor, y: Tensor, style: Style) -> nn.Module:
    return DropoutDecoder(style)
