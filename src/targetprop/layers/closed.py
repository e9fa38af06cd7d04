"""Modules that count as one call: those with a decoder of their own, and those that autograd cannot see into."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from targetprop.layers.random_states import random_states
from targetprop.layers.sites import tensors_in
from targetprop.layers.undone import ForwardState, without_hooks


class Closed:
    """A module as a function; the first time it gives what the module has made already.

    Args:
        name: the module's name.
        module: the module.
        before: the states of the random numbers before it ran.
        made: what it returned.
        opaque: whether it let no gradient through.
    """

    def __init__(self, name: str, module: nn.Module, before: list[Tensor], made: Any, opaque: bool) -> None:
        """Keep them."""
        self.__name__ = type(module).__name__
        self.name, self.module, self.before, self.opaque = name, module, before, opaque
        self._made = made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Give what was made, or run the module again, and leave its buffers and the user's hooks alone."""
        if self._made is not None:
            made, self._made = self._made, None
            return made
        before = ForwardState(self.module.modules(), random=False)
        try:
            with without_hooks(self.module):
                return self.module(*args, **kwargs)
        finally:
            before.restore()


@contextmanager
def closing(modules: Mapping[str, nn.Module], see: Callable[[Closed | None, Any, Any], Any]) -> Iterator[None]:
    """Let modules be seen as one call each while they run.

    Args:
        modules: the modules by name.
        see: is called before each of them with None, and after it with what stands for it and its arguments; returns
            the module's output then.

    Yields:
        Nothing.
    """
    handles: list[Any] = []
    states: list[list[Tensor]] = []
    for name, module in modules.items():

        def enter(module: nn.Module, args: Any) -> None:
            states.append(random_states())
            see(None, args, {})

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> Any:
            led = any(t.requires_grad for t in tensors_in((args, kwargs)))
            opaque = led and not any(t.requires_grad for t in tensors_in(output))
            if opaque:
                output = tree_map(_leaf, output)
            return see(Closed(name, module, states.pop(), output, opaque), args, kwargs)

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _leaf(t: Any) -> Any:
    return t.detach().requires_grad_() if isinstance(t, Tensor) and t.is_floating_point() else t
