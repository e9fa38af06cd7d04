"""Where a step needs derivatives that autograd does not have: refused before the first step."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from targetprop.decoders import Bank, pulled_back
from targetprop.layers import Chain, Record, Residual, leaves
from targetprop.layers.black_box import is_black_box, reaches

_WHY = "autograd gives it no derivative although its output changes with its input"


def check_derivatives(chain: Chain, example: Record, bank: Bank, needs_decoder: bool) -> None:
    """Refuse, by a ``ValueError``, black boxes where a derivative is needed.

    That is after parameters in the same layer, and in layers that are inverted through their own VJP.

    Args:
        chain: the layers, in eval mode.
        example: a forward pass on a few samples, with the outputs of the modules inside each layer.
        bank: the decoders.
        needs_decoder: whether layers are inverted by the decoders, not by the gradient of the layer.
    """
    kinds = bank.kinds()
    for layer, record in zip(chain.layers, example.layers, strict=True):
        _check_path(layer.name, layer.modules, record.x)
        through_vjp = not needs_decoder or kinds.get(layer.name, "").startswith("linearised")
        if layer is not chain.layers[0] and through_vjp:
            _check_inverse(layer.name, layer.modules, (record.x, *record.inner[:-1]), needs_decoder)


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
        return reaches(module(torch.empty_like(x).normal_(generator=generator)), own)
