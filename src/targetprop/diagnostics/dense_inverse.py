r"""Decoders by dense algebra: ``J_g = J_fᵀ (w J_f J_fᵀ + λ I)⁻¹``, from the Jacobian of every layer at every sample.

The slow, obvious form of `targetprop.Exact`, and the faster one where many steps of an iteration use one Jacobian.

>>> import torch, targetprop as tp
>>> from torch import nn
>>> net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
>>> method = tp.Method(decoder=DenseInverse(w=0.0, damping=1.0))         # transposes
>>> engine = tp.TargetPropagation(net, nn.MSELoss(), example_input=torch.ones(2, 3), method=method)
>>> _ = engine.backward(torch.ones(2, 3), torch.zeros(2, 1))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor, nn

from targetprop.decoders import Bank, Inverse, Objective
from targetprop.diagnostics.dense import damped_inverse
from targetprop.layers import LayerRecord, Network, Record


@dataclass(frozen=True)
class DenseInverse(Objective):
    """Exact decoders, linearised at the forward activation.

    Attributes:
        w: weight of the inverse; ``(w, λ) = (0, 1)`` is the transpose, ``(1, 0)`` the pseudo-inverse.
        damping: ``λ ≥ 0``.
        relative: measure ``λ`` in units of the mean of the diagonal of ``J_f J_fᵀ``, over the batch.
    """

    w: float = 1.0
    damping: float = 0.0
    relative: bool = False
    name: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        if self.w < 0 or self.damping < 0:
            raise ValueError(f"decoder w and damping must be ≥ 0; got {self.w} and {self.damping}")

    def build(self, network: Network, example: Record, custom: Mapping[str, nn.Module]) -> Bank:
        """Build a bank without parameters; see `Objective.build`."""
        return DenseBank(self)


class DenseBank(Bank):
    """The decoders of `DenseInverse`, computed anew for each forward pass."""

    def __init__(self, settings: DenseInverse) -> None:
        """Keep the settings."""
        super().__init__()
        self.settings = settings

    def inverse(self, layer: LayerRecord) -> Inverse:
        """Bind the decoder of one layer; see `Bank.inverse`."""
        return linear_inverse(self._matrix(layer), layer.x, layer.h)

    def composite(self, layers: Sequence[LayerRecord]) -> Inverse:
        """Multiply the decoders of all layers; see `Bank.composite`."""
        matrices = [self._matrix(layer) for layer in layers]
        return linear_inverse(reduce(torch.matmul, matrices), layers[0].x, layers[-1].h)

    def _matrix(self, layer: LayerRecord) -> Tensor:
        jacobian, damping = layer_jacobian(layer), self.settings.damping
        if self.settings.relative:
            damping = damping * float(jacobian.square().sum(2).mean())
        return damped_inverse(jacobian, self.settings.w, damping)


def layer_jacobian(layer: LayerRecord) -> Tensor:
    """Differentiate one layer at its forward input, all rows at once.

    Args:
        layer: the layer's record.

    Returns:
        ``∂h_l/∂h_{l-1}``, shape ``(n, d_l, d_{l-1})``.
    """
    x = layer.x.detach().requires_grad_()
    with torch.enable_grad():
        y = layer.f(x).flatten(1)
        rows = torch.eye(y.shape[1], dtype=y.dtype, device=y.device).unsqueeze(1).expand(-1, len(y), -1)
        (jacobian,) = torch.autograd.grad(y, x, rows, is_grads_batched=True, materialize_grads=True)
    return jacobian.flatten(2).transpose(0, 1)


def linear_inverse(matrix: Tensor, x0: Tensor, y0: Tensor) -> Inverse:
    """Make ``g(y) = x₀ + M (y − y₀)``, one matrix per sample.

    Args:
        matrix: ``M``, shape ``(n, d_in, d_out)``.
        x0: shape ``(n, …)``.
        y0: shape ``(n, …)``.

    Returns:
        The decoder.
    """

    def linear(change: Tensor) -> Tensor:
        return (matrix @ change.flatten(1).unsqueeze(2)).view_as(x0)

    return Inverse(lambda y: x0 + linear(y - y0), lambda y, change: linear(change))
