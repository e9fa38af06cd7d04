"""What a forward pass moves beside its output, random numbers and buffers, and how it is put back."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from targetprop.layers.random_states import random_states, set_random_states


class ForwardState:
    """What a forward pass moves: random numbers and buffers."""

    def __init__(self, modules: Iterable[nn.Module], *, random: bool = True) -> None:
        """Remember it, or the buffers alone."""
        self._random = random_states() if random else []
        self._buffers = [
            (module, name, buffer, buffer.clone())
            for module in modules
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Put it back."""
        if self._random:
            set_random_states(self._random)
        for module, name, buffer, before in self._buffers:
            module._buffers[name] = buffer
            if not torch.equal(buffer, before):
                buffer.copy_(before)


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Put random numbers and buffers back afterwards."""
    before = ForwardState(model.modules())
    try:
        yield
    finally:
        before.restore()


@contextmanager
def without_hooks(model: nn.Module | None) -> Iterator[None]:
    """Take the forward hooks away for a while, but not those that run before a module, which may make its weights."""
    hooks = [] if model is None else [(module, module._forward_hooks) for module in model.modules()]
    try:
        for module, _ in hooks:
            module._forward_hooks = OrderedDict()
        yield
    finally:
        for module, kept in hooks:
            module._forward_hooks = kept


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Set modules to eval mode for a while: what runs meanwhile changes no statistics.

    Args:
        modules: the modules.

    Yields:
        Nothing.
    """
    modes = [(module, module.training) for module in modules]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training
