"""What a forward pass moves beside its output, random numbers, buffers and attributes, and how it is put back."""

import random as python_random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from typing import Any, TypeVar

import torch
from torch import nn

from targetprop.layers.random_states import random_states, set_random_states

T = TypeVar("T")
_CONTAINERS = (list, dict, set, deque)
_OWN = frozenset(vars(nn.Module()))


class ForwardState:
    """What a forward pass moves: random numbers, buffers, and what modules count or keep.

    Args:
        modules: the modules.
        random: whether to remember random numbers.
        contents: whether to remember what is in lists and dictionaries that modules keep, and Python's random numbers.
    """

    def __init__(self, modules: Iterable[nn.Module], *, random: bool = True, contents: bool = False) -> None:
        """Remember it."""
        modules = list(modules)
        self._random = random_states() if random else []
        self._attributes = [(module, type(module), dict(vars(module))) for module in modules]
        self._contents = _containers(modules) if contents else []
        self._python = python_random.getstate() if contents else None
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
            if buffer.layout != torch.strided or not torch.equal(buffer, before):
                buffer.resize_(before.shape) if buffer.shape != before.shape else None
                buffer.copy_(before)
        if self._python is not None:
            python_random.setstate(self._python)
        for module, kind, before in self._attributes:
            if type(module) is kind:  # or it was lazy and has become what it is
                for name in vars(module).keys() - before:
                    del vars(module)[name]
                vars(module).update(before)
        for kept, before in self._contents:
            kept.clear()
            kept.update(before) if isinstance(kept, dict | set) else kept.extend(before)


def _containers(modules: Iterable[nn.Module]) -> list[tuple[Any, Any]]:
    return [
        (value, copy(value))
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, _CONTAINERS) and name not in _OWN
    ]


@contextmanager
def undone(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put back afterwards what a forward pass moves."""
    before = ForwardState(modules, contents=True)
    try:
        yield
    finally:
        before.restore()


@contextmanager
def without_hooks(model: nn.Module | None, *, before: bool = False) -> Iterator[None]:
    """Take the user's forward hooks away for a while, and those that run before a module if asked."""
    hooks = [] if model is None else [(m, m._forward_hooks, m._forward_pre_hooks) for m in model.modules()]
    try:
        for module, _, first in hooks:
            module._forward_hooks = OrderedDict()
            if before:
                module._forward_pre_hooks = OrderedDict((k, hook) for k, hook in first.items() if not _foreign(hook))
        yield
    finally:
        for module, after, first in hooks:
            module._forward_hooks, module._forward_pre_hooks = after, first


def unseen(model: nn.Module, run: Callable[[], T], beside: Iterable[nn.Module] = ()) -> T:
    """Run something of which nothing stays and no hook knows, but those that make what the model needs.

    Args:
        model: the model.
        run: runs it.
        beside: modules that run with it.

    Returns:
        What came out.
    """
    modules = [*model.modules(), *beside]
    if any(_foreign(hook) for module in modules for hook in module._forward_pre_hooks.values()):
        with suppress(Exception), undone(modules), without_hooks(model, before=True):
            return run()
    with undone(modules), without_hooks(model):
        return run()


def _foreign(hook: Any) -> bool:
    """Say whether a hook is none of PyTorch's own, which make weights."""
    return not str(getattr(hook, "__module__", "")).startswith("torch.")


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
