"""How a model is called: with a tensor, several inputs, or modules in order."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from targetprop.layers.sites import tensors_in

_LABELS = ("labels", "label", "targets", "target")


class Stack(nn.Module):
    """Modules applied in order, each of which is one layer.

    Args:
        modules: a sequence, or a dictionary by layer name.
    """

    def __init__(self, modules: Any) -> None:
        """Keep the modules, by an error that names what is none."""
        super().__init__()
        if not isinstance(modules, Iterable):
            raise TypeError(f"the model must be a module or a list of modules; got {type(modules).__name__}")
        named = modules.items() if isinstance(modules, Mapping) else ((str(i), m) for i, m in enumerate(modules))
        for name, module in named:
            if not isinstance(module, nn.Module):
                raise TypeError(f"layer {name} must be a module; got {type(module).__name__}")
            self.add_module(name, module)

    def forward(self, h: Any) -> Any:
        """Apply the modules in order."""
        for module in self.children():
            h = module(h)
        return h

    def ends(self, ends: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """Say at which torch call each layer ends, by name."""
        return {name: ends[name][-1] for name, _ in self.named_children() if name in ends}


def call(model: nn.Module, x: Any) -> Any:
    """Call a model with a tensor, a tuple of positional or a dictionary of keyword inputs."""
    if isinstance(x, Mapping):
        return model(**x)
    return model(*x) if isinstance(x, tuple | list) else model(x)


def split_labels(x: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Tell labels that a model takes by keyword from its other inputs."""
    if not isinstance(x, Mapping):
        return list(tensors_in(x)), []
    labels = [t for name, t in x.items() if name in _LABELS and isinstance(t, Tensor)]
    return [t for t in tensors_in(x) if not any(t is label for label in labels)], labels


def leaves(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Open modules that apply others in order.

    Args:
        module: any module.
        prefix: its qualified name.

    Yields:
        Qualified names and modules in forward order; a module of another kind as it is.
    """
    if not (isinstance(module, Stack) or type(module).forward is nn.Sequential.forward):
        yield prefix, module
        return
    for name, child in module._modules.items():  # unlike named_children, lists a module each time it is used
        assert child is not None
        yield from leaves(child, f"{prefix}.{name}" if prefix else name)
