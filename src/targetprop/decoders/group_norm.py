r"""Decoders of GroupNorm and InstanceNorm, with each sample's statistics ``m, σ`` of the forward pass per group.

Style "identity" leaves the norm to the map that is learned beside it. "inverse" undoes ``y = w (x − m)/σ + b`` with the
statistics held fixed. "transpose" applies ``Jᵀ`` exactly: ``(u − mean u − x̂ mean(u x̂))/σ`` with ``u = v w`` and
``x̂ = (x − m)/σ``, means over a group. Instance norms are group norms of one channel each.

>>> x = torch.tensor([[1.0, 3.0, 4.0, 8.0]])
>>> y, state = _record(norm := nn.GroupNorm(2, 4, eps=0.0), x)
>>> GroupNormDecoder(norm, "inverse")(y, state).tolist()
[[1.0, 3.0, 4.0, 8.0]]
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.instancenorm import _InstanceNorm  # pyright: ignore[reportPrivateUsage]

from targetprop.decoders.norm import _divide  # pyright: ignore[reportPrivateUsage]
from targetprop.decoders.registry import ModuleDecoder, Style, register_decoder
from targetprop.decoders.shape import Rearrange
from targetprop.layers.replay import ReplayState, register_replay
from targetprop.precision import at_least_float32


class GroupNormDecoder(ModuleDecoder):
    """Affine decoder of a group norm at the sample's own means and standard deviations.

    Args:
        module: the norm.
        style: "inverse" or "transpose".
    """

    affine = True

    def __init__(self, module: Any, style: Style) -> None:
        """Keep a reference that is not a submodule: the norm's parameters stay the user's."""
        super().__init__()
        self.style = style
        self._norm = (module,)

    def forward(self, y: Tensor, state: ReplayState) -> Tensor:
        """Decode; see `ModuleDecoder.forward`."""
        bias, mean = self._norm[0].bias, state.per_sample[0]
        centred = y if bias is None else y - _by_channel(bias, y)
        return (_grouped(self.linear(centred, state), mean) + mean).reshape(y.shape)

    def linear(self, change: Tensor, state: ReplayState) -> Tensor:
        """Apply the linear part; see `ModuleDecoder.linear`."""
        weight, (mean, sigma, *inputs) = self._norm[0].weight, state.per_sample
        gain = change.new_ones(()) if weight is None else _by_channel(weight, change)
        if self.style == "inverse":
            return (_grouped(_divide(change, gain), mean) * sigma).reshape(change.shape)
        u = _grouped(change * gain, mean)
        for x in inputs:  # none if the statistics are not the sample's own
            centred = _grouped(at_least_float32(x), mean) - mean
            shared = torch.linalg.vecdot(u.to(centred), centred).unsqueeze(2) / (sigma.square() * centred.shape[2])
            u = torch.addcmul(u - u.mean(2, keepdim=True), centred, shared, value=-1)
        return (u / sigma).reshape(change.shape)


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.detach().view(-1, *[1] * (like.dim() - 2))


def _grouped(values: Tensor, mean: Tensor) -> Tensor:
    """One row per sample and group."""
    return values.reshape(*mean.shape[:2], -1)


def _record(module: Any, x: Tensor) -> tuple[Tensor, ReplayState]:
    y, groups = module(x), module.num_groups if isinstance(module, nn.GroupNorm) else x.shape[1]
    with torch.no_grad():
        if isinstance(module, _InstanceNorm) and module.track_running_stats and not module.training:
            assert module.running_mean is not None and module.running_var is not None
            ones = x.new_ones(len(x), groups, 1)
            spread = (module.running_var + module.eps).sqrt()
            return y, ReplayState(per_sample=(ones * module.running_mean.view(-1, 1), ones * spread.view(-1, 1)))
        variance, mean = torch.var_mean(
            at_least_float32(x).reshape(len(x), groups, -1), dim=2, correction=0, keepdim=True
        )
        return y, ReplayState(per_sample=(mean, (variance + module.eps).sqrt(), x.detach()))


def _replay_instance_norm(module: nn.Module, x: Tensor, state: ReplayState) -> Tensor:
    """Repeat the norm without moving its running statistics."""
    assert isinstance(module, _InstanceNorm)
    if len(state.per_sample) == 2:
        return module(x)
    return functional.instance_norm(x, None, None, module.weight, module.bias, use_input_stats=True, eps=module.eps)


register_replay(nn.GroupNorm, _record, lambda module, x, state: module(x))
register_replay(_InstanceNorm, _record, _replay_instance_norm)


@register_decoder(nn.GroupNorm)
@register_decoder(_InstanceNorm)
def _build(module: nn.Module, x: Tensor, y: Tensor, style: Style) -> nn.Module:
    return Rearrange(lambda values: values) if style == "identity" else GroupNormDecoder(module, style)
