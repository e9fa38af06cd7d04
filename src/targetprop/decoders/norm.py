r"""Decoders of BatchNorm and LayerNorm, with the statistics of the forward pass held fixed.

Style "identity" leaves the norm to the affine map that is learned beside it. "inverse" undoes ``y = w (x − m)/σ + b``.
"transpose" applies ``Jᵀ``: ``v w/σ`` for BatchNorm, whose statistics are frozen, and for LayerNorm, whose statistics
belong to the sample, ``(u − mean u − x̂ mean(u x̂))/σ`` with ``u = v w`` and ``x̂ = (x − m)/σ``.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from targetprop.decoders.registry import ModuleDecoder, Style, register_decoder
from targetprop.decoders.shape import Rearrange
from targetprop.layers.replay import ReplayState, register_replay
from targetprop.precision import at_least_float32

_SMALL = 1e-6


def _divide(values: Tensor, weight: Tensor) -> Tensor:
    """Divide by a gain, leaving values whose gain is zero where they are: they carry no signal."""
    return values * weight.reciprocal().masked_fill(weight.abs() < _SMALL, 0.0)


class BatchNormDecoder(ModuleDecoder):
    """Diagonal affine decoder of a BatchNorm module, read from its live gain, bias and statistics.

    Args:
        module: the norm.
        style: "inverse" or "transpose".
    """

    affine = True
    diagonal = True

    def __init__(self, module: _BatchNorm, style: Style) -> None:
        """Keep a reference that is not a submodule: the norm's parameters stay the user's."""
        super().__init__()
        self.style = style
        self._norm = (module,)

    def _constants(self, y: Tensor, state: ReplayState) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        norm = self._norm[0]
        mean, variance = state.shared if state.shared else (norm.running_mean, norm.running_var)
        assert mean is not None and variance is not None
        sigma = (variance + norm.eps).sqrt()
        weight = torch.ones_like(sigma) if norm.weight is None else norm.weight.detach()
        bias = torch.zeros_like(sigma) if norm.bias is None else norm.bias.detach()
        shape = (1, -1, *[1] * (y.dim() - 2))
        return mean.view(shape), sigma.view(shape), weight.view(shape), bias.view(shape)

    def forward(self, y: Tensor, state: ReplayState) -> Tensor:
        """Decode; see `ModuleDecoder.forward`."""
        mean, _, _, bias = self._constants(y, state)
        return self.linear(y - bias, state) + mean

    def linear(self, change: Tensor, state: ReplayState) -> Tensor:
        """Apply the diagonal; see `ModuleDecoder.linear`."""
        _, sigma, weight, _ = self._constants(change, state)
        return change * weight / sigma if self.style == "transpose" else _divide(change, weight) * sigma


class LayerNormDecoder(ModuleDecoder):
    """Affine decoder of a LayerNorm at the sample's own mean and standard deviation.

    Args:
        module: the norm.
        style: "inverse" or "transpose".
    """

    affine = True

    def __init__(self, module: nn.LayerNorm, style: Style) -> None:
        """Keep a reference that is not a submodule: the norm's parameters stay the user's."""
        super().__init__()
        self.style = style
        self._norm = (module,)

    def _gain(self, values: Tensor) -> Tensor:
        weight = self._norm[0].weight
        return torch.ones_like(values) if weight is None else weight.detach().expand_as(values)

    def forward(self, y: Tensor, state: ReplayState) -> Tensor:
        """Decode; see `ModuleDecoder.forward`."""
        bias = self._norm[0].bias
        mean = state.per_sample[0]
        return self.linear(y if bias is None else y - bias.detach(), state) + mean

    def linear(self, change: Tensor, state: ReplayState) -> Tensor:
        """Apply the linear part; see `ModuleDecoder.linear`."""
        mean, sigma, x = state.per_sample
        if self.style == "inverse":
            return _divide(change, self._gain(change)) * sigma
        axes = tuple(range(-len(self._norm[0].normalized_shape), 0))
        u, standard = change * self._gain(change), (at_least_float32(x) - mean) / sigma
        return (u - u.mean(axes, keepdim=True) - standard * (u * standard).mean(axes, keepdim=True)) / sigma


def _record_layer_norm(module: nn.Module, x: Tensor) -> tuple[Tensor, ReplayState]:
    assert isinstance(module, nn.LayerNorm)
    axes = tuple(range(-len(module.normalized_shape), 0))
    with torch.no_grad():
        variance, mean = torch.var_mean(at_least_float32(x), dim=axes, correction=0, keepdim=True)
    return module(x), ReplayState(per_sample=(mean, (variance + module.eps).sqrt(), x.detach()))


register_replay(nn.LayerNorm, _record_layer_norm, lambda module, x, state: module(x))


@register_decoder(_BatchNorm)
def _build_batch_norm(module: nn.Module, x: Tensor, y: Tensor, style: Style) -> nn.Module:
    assert isinstance(module, _BatchNorm)
    return Rearrange(lambda values: values) if style == "identity" else BatchNormDecoder(module, style)


@register_decoder(nn.LayerNorm)
def _build_layer_norm(module: nn.Module, x: Tensor, y: Tensor, style: Style) -> nn.Module:
    assert isinstance(module, nn.LayerNorm)
    return Rearrange(lambda values: values) if style == "identity" else LayerNormDecoder(module, style)
