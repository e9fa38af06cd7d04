"""What a forward pass moves beside its output, random numbers and buffers, and how it is put back."""

import random as python_random
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from targetprop.layers.random_states import random_states, set_random_states


class ForwardState:
    """What a forward pass moves: random numbers and buffers, and plain values of Python if asked for.

    Args:
        modules: the modules that run.
        random: whether random numbers are put back.
        python: whether Python's random numbers are, and what modules count or list in attributes of their own.
    """

    def __init__(self, modules: Iterable[nn.Module], *, random: bool = True, python: bool = False) -> None:
        """Remember it."""
        modules = list(modules)
        self._random = random_states() if random else []
        self._buffers = [
            (module, name, buffer, buffer.clone())
            for module in modules
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._python = (python_random.getstate(), [(m, _plain(m)) for m in modules]) if python else None

    @torch.no_grad()
    def restore(self) -> None:
        """Put it back."""
        if self._random:
            set_random_states(self._random)
        for module, name, buffer, before in self._buffers:
            module._buffers[name] = buffer
            if buffer.layout != torch.strided or not torch.equal(buffer, before):
                buffer.resize_(before.shape) if buffer.shape != before.shape else None
                buffer.copy_(before)
        if self._python is not None:
            python_random.setstate(self._python[0])
            for module, attributes in self._python[1]:
                for name, (value, before) in attributes.items():
                    if isinstance(value, list):
                        value[:] = before
                    setattr(module, name, value)


def _plain(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Find the numbers, texts and lists among the attributes of a module, and what lists hold."""
    own = vars(module).items()
    found = {name: value for name, value in own if isinstance(value, int | float | str | list)}
    return {name: (value, list(value) if isinstance(value, list) else None) for name, value in found.items()}


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Put random numbers and buffers back afterwards."""
    before = ForwardState(model.modules(), python=True)
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
