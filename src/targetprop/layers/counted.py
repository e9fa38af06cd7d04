"""A mode that sees and numbers torch calls, so that a recorded pass and the passes after it can be compared."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode,  # pyright: ignore[reportPrivateUsage]
    _pop_mode_temporarily,  # pyright: ignore[reportPrivateUsage]
)

from targetprop.layers.closed import Closed, closing
from targetprop.layers.recurrent import is_recurrent, write_out
from targetprop.layers.sites import tensors_in

CUSTOM = ".apply"  # ends the names of autograd functions that users write
_ASKS = "has_torch_function"  # what functions that are written in Python ask whether a mode is on
_QUESTIONS = {
    "__set__", "__len__", "__bool__", "__int__", "__float__", "__index__", "__repr__", "__format__", "__hash__",
    "backward", "data_ptr", "dim", "element_size", "get_device", "is_complex", "is_contiguous", "is_floating_point",
    "item", "ndimension", "nelement", "numel", "register_hook", "requires_grad_", "size", "storage_offset", "stride",
    "tolist", "type",
    "untyped_storage",
}  # fmt: skip
_VIEWS = (torch.Tensor.T, torch.Tensor.mT, torch.Tensor.H, torch.Tensor.mH, torch.Tensor.data, torch.Tensor.real,
          torch.Tensor.imag)  # fmt: skip


class Uses(TorchFunctionMode):
    """Sees which parameters an autograd function of the user's applies, of those that ask for a gradient.

    Args:
        parameters: the parameters, by id.
    """

    def __init__(self, parameters: Mapping[int, str]) -> None:
        """Start without any."""
        super().__init__()
        self.seen: dict[int, None] = {}
        self._parameters = parameters

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note what a call is given."""
        used = tensors_in((args, kwargs or {}))
        self.seen |= dict.fromkeys(id(t) for t in used if id(t) in self._parameters and t.requires_grad)
        return func(*args, **(kwargs or {}))


class CountedMode(TorchFunctionMode):
    """Numbers torch calls; the same sequence of calls has the same signature.

    Args:
        by_maps: write recurrent layers of torch out.
    """

    def __init__(self, *, by_maps: bool) -> None:
        """Start before the first call."""
        super().__init__()
        self._by_maps = by_maps
        self.count, self.signature = 0, 0
        self.inside = 0  # of how many modules that count as one call

    def opens(self, func: Callable[..., Any], args: Sequence[Any]) -> bool:
        """Say whether a function hides maps whose calls should be seen."""
        recurrent = self._by_maps and not isinstance(func, Closed) and is_recurrent(func.__name__, args)
        return recurrent or func is functional.multi_head_attention_forward

    def run_opened(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run such a function, or what writes it out, under the mode."""
        if func is not functional.multi_head_attention_forward:
            with self:
                return write_out(func.__name__)(*args, **kwargs)
        asked = getattr(functional, _ASKS)
        setattr(functional, _ASKS, lambda *_: False)
        try:
            with self:
                return func(*args, **kwargs)
        finally:
            setattr(functional, _ASKS, asked)

    @contextmanager
    def seeing_custom(self) -> Iterator[None]:
        """Let the mode see the autograd functions that users write, which are no torch calls."""
        base: Any = torch.autograd.Function.__mro__[1]  # `Function.apply` may be held by its users, and calls this

        def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                if torch._C._are_functorch_transforms_active():  # where it is called again
                    return torch.autograd.Function.apply.__func__(cls, *args, **kwargs)
                return super(base, cls).apply(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

            call.__name__ = f"{cls.__name__}{CUSTOM}"
            mode = _get_current_function_mode()
            if mode is None or isinstance(mode, Uses):  # another one called it
                return call(*args, **kwargs)
            with _pop_mode_temporarily():  # what its forward calls is its own affair
                return self.__torch_function__(call, (), args, kwargs)

        base.apply = classmethod(apply)
        try:
            yield
        finally:
            del base.apply

    @contextmanager
    def closing(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Let modules count as one call each."""

        def see(closed: Closed | None, args: Any, kwargs: Any) -> Any:
            if closed is None:
                self.inside += 1
                return None
            self.inside -= 1
            with _pop_mode_temporarily():  # as where torch calls the mode: what it calls itself is not to be seen
                return self.__torch_function__(closed, (), args, kwargs)

        with closing(modules, see):
            yield

    def number(self, func: Callable[..., Any]) -> int:
        """Give the next call its number, but for questions about a tensor, which anybody may ask at any time: −1."""
        name = func.__name__
        if name in _QUESTIONS or (name == "__get__" and func.__self__ not in _VIEWS):  # pyright: ignore
            return -1
        index = self.count
        self.count = index + 1
        self.signature = hash((self.signature, name))
        return index
