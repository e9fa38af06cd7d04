"""Black boxes: modules that autograd cannot differentiate, such as sign, round or a call into another library.

Autograd says of them nothing, or zero, and neither is an error: a network with one would silently not learn. A module
is a black box here if its output changes with its input although its vector-Jacobian product is absent or zero, both at
the example and at random inputs.

>>> import torch
>>> from torch import nn
>>> class Sign(nn.Module):
...     def forward(self, x):
...         return x.sign()
>>> example = torch.zeros(2, 3)
>>> is_black_box(Sign(), example), is_black_box(nn.ReLU(), example)
(True, False)
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from targetprop.chain import Chain, leaves
from targetprop.decoders import Bank, pulled_back
from targetprop.forward import Record
from targetprop.residual import Residual

_WHY = "autograd gives it no derivative although its output changes with its input"


def is_black_box(module: nn.Module, x: Tensor) -> bool:
    """Try whether autograd can differentiate a module.

    Args:
        module: the module.
        x: an example input, shape ``(n, …)``.

    Returns:
        Whether the output changes with the input, and no derivative says so.
    """
    if not x.is_floating_point() or _pulls(module, x):
        return False
    generator = torch.Generator(device=x.device).manual_seed(0)
    a, b = (torch.empty_like(x).normal_(generator=generator) for _ in range(2))
    if _pulls(module, a):
        return False
    with torch.no_grad():
        return not torch.equal(module(a.clone()), module(b.clone()))


def _pulls(module: nn.Module, x: Tensor) -> bool:
    """Whether the vector-Jacobian product exists and is not zero."""
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)
        try:
            y = module(x * 1)
        except RuntimeError:  # it runs on values alone, as NumPy does
            return False
        return _reaches(y, [x])


def _reaches(y: Tensor, inputs: Sequence[Tensor]) -> bool:
    if not y.requires_grad:
        return False
    weights = torch.linspace(1.0, 2.0, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
    try:
        found = torch.autograd.grad(y, inputs, weights, allow_unused=True)
    except NotImplementedError:  # an operation without a derivative formula
        return False
    return any(part is not None and bool(part.any()) for part in found)


def check_derivatives(
    chain: Chain, example: Record, inner: Sequence[tuple[Tensor, ...]], bank: Bank, needs_decoder: bool
) -> None:
    """Refuse, by a ``ValueError``, black boxes where a derivative is needed.

    That is after parameters in the same layer, and in layers that are inverted through their own VJP.

    Args:
        chain: the layers, in eval mode.
        example: a forward pass on a few samples.
        inner: outputs of the modules inside each layer in that pass.
        bank: the decoders.
        needs_decoder: whether layers are inverted by the decoders, not by the gradient of the layer.
    """
    kinds = bank.kinds()
    for layer, record, outputs in zip(chain.layers, example.layers, inner, strict=True):
        _check_path(layer.name, layer.modules, record.x)
        through_vjp = not needs_decoder or kinds.get(layer.name, "").startswith("linearised")
        if layer is not chain.layers[0] and through_vjp:
            _check_inverse(layer.name, layer.modules, (record.x, *outputs[:-1]), needs_decoder)


def _check_inverse(name: str, modules: Sequence[nn.Module], inputs: Sequence[Tensor], needs_decoder: bool) -> None:
    for module, x in zip(modules, inputs, strict=True):
        if not is_black_box(module, x):
            continue
        remedy = (
            f"register a decoder for it with targetprop.register_decoder, or give one by decoders={{{name!r}: module}}"
            if needs_decoder
            else "choose a method whose decoders are learned, such as 'dtp'"
        )
        raise ValueError(
            f"layer {name}: {type(module).__name__} cannot be inverted through its derivative: {_WHY}; {remedy}"
        )


def _check_path(name: str, modules: Sequence[nn.Module], x: Tensor) -> None:
    """Refuse a black box between trainable parameters and the output of their layer, or with a pullback registered."""
    trained = False
    for module in modules:
        if isinstance(module, Residual):
            for path in (module.branch, module.shortcut):
                _check_path(name, [leaf for _, leaf in leaves(path)], x)
        if pulled_back(module) and is_black_box(module, x):
            raise ValueError(
                f"layer {name}: {type(module).__name__} was registered with register_pullback and has no pullback:"
                f" {_WHY}; register a learned decoder for it with targetprop.register_decoder"
            )
        own = [p for p in module.parameters() if p.requires_grad]
        if (trained or own) and is_black_box(module, x) and (trained or not _trains(module, own, x)):
            raise ValueError(
                f"layer {name}: {type(module).__name__} lets no gradient through to the parameters before it: {_WHY};"
                " let the layer end at its parameters, by a method with cut='pre-activation' or a list of layers"
            )
        trained = trained or bool(own)
        with torch.no_grad():
            x = module(x)


def _trains(module: nn.Module, own: Sequence[Tensor], x: Tensor) -> bool:
    generator = torch.Generator(device=x.device).manual_seed(1)
    with torch.enable_grad():
        return _reaches(module(torch.empty_like(x).normal_(generator=generator)), own)
