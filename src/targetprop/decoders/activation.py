r"""Decoders of elementwise activations ``h = σ(z)``, in three styles.

* "identity": the activation is left to the affine map that is learned beside it, so ``g`` is affine in ``h``;
* "inverse": ``σ⁻¹(h)``, with ``h`` first clamped to the range of ``σ``;
* "transpose": ``ψ(h)`` with ``ψ'(h) = σ'(σ⁻¹(h))``: a function of ``h`` alone whose Jacobian *is* ``J_σᵀ`` at the
  forward activation (for tanh, ``ψ(h) = h − h³/3``).

Activations that are not monotone (GELU, SiLU, Mish, …) have no inverse, so only "identity" serves them.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from targetprop.decoders.registry import ModuleDecoder, Style, register_decoder
from targetprop.decoders.shape import Rearrange
from targetprop.forward import Side

Function = Callable[[Tensor], Tensor]
_EDGE = 1e-6


class Elementwise(ModuleDecoder):
    """An elementwise function of the output.

    Args:
        function: what to apply.
    """

    def __init__(self, function: Function) -> None:
        """Keep the function."""
        super().__init__()
        self.function = function

    def forward(self, y: Tensor, side: Side) -> Tensor:
        """Decode; see `ModuleDecoder.forward`."""
        return self.function(y)


def _positive(h: Tensor, above: Tensor, below: Tensor) -> Tensor:
    return torch.where(h > 0, above, below)


def _expm1_like(alpha: float, scale: float = 1.0, rate: float = 1.0) -> tuple[Function, Function]:
    """Inverse and transpose of ``scale·z`` above 0 and ``scale·alpha·(exp(z/rate) − 1)`` below."""

    def inverse(h: Tensor) -> Tensor:
        low = (h / (scale * alpha)).clamp(-1 + _EDGE, 0)
        return _positive(h, h / scale, rate * torch.log1p(low))

    def transpose(h: Tensor) -> Tensor:
        low = h.clamp(-scale * alpha, 0)
        return _positive(h, scale * h, (low * low / 2 + scale * alpha * low) / rate)

    return inverse, transpose


def _leaky(slope: Function) -> tuple[Function, Function]:
    """Inverse and transpose of ``z`` above 0 and ``slope·z`` below; a zero slope passes targets unchanged."""

    def inverse(h: Tensor) -> Tensor:
        s = slope(h)
        return _positive(h, h, torch.where(s == 0, h, h / torch.where(s == 0, torch.ones_like(s), s)))

    return inverse, lambda h: _positive(h, h, slope(h) * h)


def _softplus(beta: float) -> tuple[Function, Function]:
    def inverse(h: Tensor) -> Tensor:
        h = h.clamp_min(_EDGE)
        return h + torch.log(-torch.expm1(-beta * h)) / beta

    return inverse, lambda h: h.clamp_min(0) + torch.exp(-beta * h.clamp_min(0)) / beta


def _softsign() -> tuple[Function, Function]:
    def clamp(h: Tensor) -> Tensor:
        return h.clamp(-1 + _EDGE, 1 - _EDGE)

    return (
        lambda h: clamp(h) / (1 - clamp(h).abs()),
        lambda h: clamp(h).sign() * (1 - (1 - clamp(h).abs()) ** 3) / 3,
    )


def _functions(module: nn.Module) -> tuple[Function, Function] | None:
    """Inverse and transpose of an activation, or None if it has no inverse."""
    match module:
        case nn.ReLU():
            return (lambda h: h), (lambda h: h.clamp_min(0))
        case nn.LeakyReLU():
            return _leaky(lambda h: torch.full_like(h, module.negative_slope))
        case nn.PReLU():
            return _leaky(lambda h: module.weight.detach().view(1, -1, *[1] * (h.dim() - 2)).expand_as(h))
        case nn.Tanh():
            return (lambda h: torch.atanh(h.clamp(-1 + _EDGE, 1 - _EDGE))), (
                lambda h: h.clamp(-1, 1) - h.clamp(-1, 1) ** 3 / 3
            )
        case nn.Sigmoid():
            return (lambda h: torch.logit(h, eps=_EDGE)), (lambda h: h.clamp(0, 1) ** 2 / 2 - h.clamp(0, 1) ** 3 / 3)
        case nn.ELU():
            return _expm1_like(module.alpha)
        case nn.CELU():
            return _expm1_like(module.alpha, rate=module.alpha)
        case nn.SELU():
            return _expm1_like(1.6732632423543772, scale=1.0507009873554805)
        case nn.Softplus():
            return _softplus(float(module.beta))
        case nn.Softsign():
            return _softsign()
        case nn.Hardtanh():  # ReLU6 is one
            low, high = module.min_val, module.max_val
            return (lambda h: h), (lambda h: h.clamp(low, high))
        case nn.Hardsigmoid():
            return (lambda h: 6 * h - 3), (lambda h: h.clamp(0, 1) / 6)
        case _:
            return None


def _build_activation(module: nn.Module, x: Tensor, y: Tensor, style: Style) -> nn.Module:
    if style == "identity":
        return Rearrange(lambda values: values)
    functions = _functions(module)
    if functions is None:
        raise ValueError(
            f"{type(module).__name__} is not monotone and has no inverse; set the decoder's activation to 'identity'"
        )
    return Elementwise(functions[0] if style == "inverse" else functions[1])


ELEMENTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.CELU, nn.SELU, nn.Softplus, nn.Softsign,
    nn.Hardtanh, nn.Hardsigmoid, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink,
    nn.Hardshrink,
)  # fmt: skip

for _kind in ELEMENTWISE:
    register_decoder(_kind)(_build_activation)
