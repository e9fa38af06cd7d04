r"""Decoders of elementwise activations ``h = σ(z)``, in three styles.

* "identity": the activation is left to the affine map that is learned beside it;
* "inverse": ``σ⁻¹(h)``, with ``h`` first clamped to the range of ``σ``;
* "transpose": ``σ'(z) h`` with ``z`` of the forward pass, so that ``J_g`` of this module *is* ``J_σᵀ``. Where ``σ'``
  is a function of ``h``, as for tanh (``1 − h²``), nothing but ``h`` is kept for it.

Activations that are not monotone (GELU, SiLU, …) have no inverse; style "inverse" leaves them to the affine map.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from targetprop.decoders.registry import ModuleDecoder, Style, register_decoder
from targetprop.decoders.shape import Rearrange
from targetprop.layers.replay import ReplayState, register_replay

Function = Callable[[Tensor], Tensor]
_EDGE = 1e-6


@dataclass(frozen=True)
class Formula:
    """What is known of a monotone activation.

    Attributes:
        inverse: ``h ↦ σ⁻¹(h)``.
        slope: ``h ↦ σ'(σ⁻¹(h))``.
    """

    inverse: Function
    slope: Function


class Elementwise(ModuleDecoder):
    """An elementwise function of the output.

    Args:
        function: what to apply.
    """

    def __init__(self, function: Function) -> None:
        """Keep the function."""
        super().__init__()
        self.function = function

    def forward(self, y: Tensor, state: ReplayState) -> Tensor:
        """Decode; see `ModuleDecoder.forward`."""
        return self.function(y)


class Slope(ModuleDecoder):
    """``x = σ'(z) y`` with the slope of the forward pass.

    Args:
        module: the activation.
    """

    affine = True
    diagonal = True

    def __init__(self, module: nn.Module) -> None:
        """Keep a reference that is not a submodule: the activation stays the user's."""
        super().__init__()
        self._activation = (module,)

    def forward(self, y: Tensor, state: ReplayState) -> Tensor:
        """Decode; see `ModuleDecoder.forward`."""
        return self.linear(y, state)

    def linear(self, change: Tensor, state: ReplayState) -> Tensor:
        """Multiply by the slope; see `ModuleDecoder.linear`."""
        module, kept = self._activation[0], state.per_sample[0]
        formula = _formula(module)
        if formula is not None:
            return change * formula.slope(kept)
        with torch.enable_grad():
            z = kept.requires_grad_(True)
            (slope,) = torch.autograd.grad(module(z).sum(), z)
        return change * slope


def _split(h: Tensor, above: Tensor | float, below: Tensor | float) -> Tensor:
    return torch.where(h > 0, above, below)


def _exponential(alpha: float, scale: float = 1.0, rate: float = 1.0) -> Formula:
    """``scale·z`` above 0, ``scale·alpha·(exp(z/rate) − 1)`` below."""

    def inverse(h: Tensor) -> Tensor:
        low = (h / (scale * alpha)).clamp(-1 + _EDGE, 0)
        return _split(h, h / scale, rate * torch.log1p(low))

    return Formula(inverse, lambda h: _split(h, scale, (h + scale * alpha) / rate))


def _leaky(slope: Tensor | float) -> Formula:
    """``z`` above 0, ``slope·z`` below; the inverse of a zero slope leaves values where they are."""
    return Formula(
        lambda h: _split(h, h, h / (slope + (slope == 0))), lambda h: _split(h, 1.0, slope + torch.zeros_like(h))
    )


def _prelu(module: nn.PReLU) -> Formula:
    def weight(h: Tensor) -> Tensor:
        return module.weight.detach().view(1, -1, *[1] * (h.dim() - 2))

    return Formula(lambda h: _leaky(weight(h)).inverse(h), lambda h: _leaky(weight(h)).slope(h))


def _tanh() -> Formula:
    return Formula(lambda h: torch.atanh(h.clamp(-1 + _EDGE, 1 - _EDGE)), lambda h: 1 - h * h)


def _sigmoid() -> Formula:
    return Formula(lambda h: torch.logit(h, eps=_EDGE), lambda h: h * (1 - h))


def _softplus(beta: float) -> Formula:
    def inverse(h: Tensor) -> Tensor:
        h = h.clamp_min(_EDGE)
        return h + torch.log(-torch.expm1(-beta * h)) / beta

    return Formula(inverse, lambda h: -torch.expm1(-beta * h))


def _log_sigmoid() -> Formula:
    softplus = _softplus(1.0)
    return Formula(lambda h: -softplus.inverse(-h), lambda h: softplus.slope(-h))


def _softsign() -> Formula:
    def inverse(h: Tensor) -> Tensor:
        h = h.clamp(-1 + _EDGE, 1 - _EDGE)
        return h / (1 - h.abs())

    return Formula(inverse, lambda h: (1 - h.abs()).square())


def _hard(low: float, high: float, slope: float, shift: float) -> Formula:
    """``slope·z + shift``, clamped to ``[low, high]``."""
    return Formula(lambda h: (h - shift) / slope, lambda h: ((h > low) & (h < high)).to(h) * slope)


_FORMULAS: dict[type[nn.Module], Callable[..., Formula]] = {
    nn.ReLU: lambda m: Formula(lambda h: h, lambda h: (h > 0).to(h)),
    nn.LeakyReLU: lambda m: _leaky(m.negative_slope),
    nn.PReLU: _prelu,
    nn.Tanh: lambda m: _tanh(),
    nn.Sigmoid: lambda m: _sigmoid(),
    nn.ELU: lambda m: _exponential(m.alpha),
    nn.CELU: lambda m: _exponential(m.alpha, rate=m.alpha),
    nn.SELU: lambda m: _exponential(1.6732632423543772, scale=1.0507009873554805),
    nn.Softplus: lambda m: _softplus(float(m.beta)),
    nn.LogSigmoid: lambda m: _log_sigmoid(),
    nn.Softsign: lambda m: _softsign(),
    nn.Hardtanh: lambda m: _hard(m.min_val, m.max_val, 1.0, 0.0),
    nn.ReLU6: lambda m: _hard(0.0, 6.0, 1.0, 0.0),
    nn.Hardsigmoid: lambda m: _hard(0.0, 1.0, 1 / 6, 0.5),
}
_WITHOUT_INVERSE = (nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink)
ELEMENTWISE = (*_FORMULAS, *_WITHOUT_INVERSE)


def _formula(module: nn.Module) -> Formula | None:
    kind = next((kind for kind in type(module).__mro__ if kind in ELEMENTWISE), None)
    return _FORMULAS[kind](module) if kind in _FORMULAS else None


def _record(module: nn.Module, z: Tensor) -> tuple[Tensor, ReplayState]:
    h = module(z)
    kept = z if _formula(module) is None else h
    return h, ReplayState(per_sample=(kept.detach(),))


def _build(module: nn.Module, x: Tensor, y: Tensor, style: Style) -> nn.Module:
    if style == "transpose":
        return Slope(module)
    formula = _formula(module) if style == "inverse" else None
    return Rearrange(lambda values: values) if formula is None else Elementwise(formula.inverse)


for _kind in ELEMENTWISE:
    register_decoder(_kind)(_build)
    register_replay(_kind, _record, lambda module, x, state: module(x))
