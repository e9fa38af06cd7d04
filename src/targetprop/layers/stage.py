"""The layers of one process, where layers are whole modules applied in order."""

from collections.abc import Sequence

from torch import nn

from targetprop.layers.inputs import Stack, leaves
from targetprop.layers.layer import Layer


def whole_modules(model: nn.Module, layers: Sequence[Layer]) -> list[tuple[nn.Module, ...]]:
    """List the modules of every layer.

    Args:
        model: the model.
        layers: its layers.

    Returns:
        The modules, by layer.

    Raises:
        ValueError: a module is in several layers, or they are not applied in order.
    """
    found: list[list[nn.Module]] = [[] for _ in layers]
    reached, whole = 0, isinstance(model, Stack | nn.Sequential)
    for name, module in leaves(model) if whole else ():
        inside = [
            number
            for number, layer in enumerate(layers)
            if any(call.path == name or call.path.startswith(f"{name}.") for call in layer.segment.calls)
        ]
        whole = whole and len(inside) <= 1 and not (inside and inside[0] < reached)
        reached = max([reached, *inside])
        found[reached].append(module)
    if not (whole and all(found)):
        raise ValueError(
            "a placement needs layers that are whole modules, applied in order; write the model as an nn.Sequential or"
            " a list of such modules"
        )
    return [tuple(modules) for modules in found]
