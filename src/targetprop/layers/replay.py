"""Modules applied once, and again with what they drew or measured then: their *replay state*.

Dropout draws a mask, batch normalisation measures its batch: repeating such a module on another input has to repeat
that too, or another function is inverted than was applied. `register_replay` teaches a class.

>>> import torch
>>> from torch import nn
>>> outputs, states = record_modules([nn.Dropout(0.5)], torch.ones(4, 3))
>>> bool((replay_modules([nn.Dropout(0.5)], torch.ones(4, 3), states) == outputs[0]).all())     # the same mask again
True
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]

from targetprop.precision import at_least_float32


@dataclass(frozen=True)
class ReplayState:
    """What one module drew or measured in the forward pass.

    Attributes:
        per_sample: tensors of shape ``(n, …)``, such as a dropout mask.
        shared: tensors that all samples share, such as batch statistics.
        inner: replay state of the modules inside, for a module that is made of others.
    """

    per_sample: tuple[Tensor, ...] = ()
    shared: tuple[Tensor, ...] = ()
    inner: tuple["ReplayState", ...] = ()

    def each(self, change: Callable[[Tensor], Tensor]) -> "ReplayState":
        """Change what is kept of each sample."""
        if self is _NOTHING:
            return self
        kept = tuple(change(values) for values in self.per_sample)
        return ReplayState(kept, self.shared, tuple(inner.each(change) for inner in self.inner))


Recorder = Callable[[nn.Module, Tensor], tuple[Tensor, ReplayState]]
Replayer = Callable[[nn.Module, Tensor, ReplayState], Tensor]
_NOTHING = ReplayState()
_RULES: dict[type[nn.Module], tuple[Recorder, Replayer]] = {}


def register_replay(kind: type[nn.Module], record: Recorder, replay: Replayer) -> None:
    """Teach the library to repeat a module whose output is not a function of its input alone.

    Args:
        kind: the module class; subclasses follow it.
        record: ``(module, x) -> (y, state)``, called once a step.
        replay: ``(module, x, state) -> y``, the same function again, sample by sample.

    Raises:
        ValueError: the class has a rule already.
    """
    if kind in _RULES:
        raise ValueError(f"{kind.__name__} has a replay rule already")
    _RULES[kind] = (record, replay)


def record_input(module: nn.Module, x: Tensor) -> tuple[Tensor, ReplayState]:
    """Apply a module and keep its input as replay state."""
    return module(x), ReplayState(per_sample=(x.detach(),))


def has_replay(module: nn.Module) -> bool:
    """Say whether a module is repeated by a rule of its class."""
    return _rule(module) is not None


def _rule(module: nn.Module) -> tuple[Recorder, Replayer] | None:
    return next((_RULES[kind] for kind in type(module).__mro__ if kind in _RULES), None)


def record_modules(modules: Sequence[nn.Module], x: Tensor) -> tuple[tuple[Tensor, ...], tuple[ReplayState, ...]]:
    """Apply modules in order and keep what is needed to repeat them."""
    outputs: list[Tensor] = []
    states: list[ReplayState] = []
    for module in modules:
        rule, version = _rule(module), x._version
        y, state = (module(x), _NOTHING) if rule is None else rule[0](module, x)
        if not isinstance(y, Tensor):
            raise TypeError(f"{type(module).__name__} returned {type(y).__name__}")
        if x._version != version:
            raise ValueError(
                f"{type(module).__name__} overwrites its input, the activation that targets are measured against; use"
                " functions that do not work in place in it"
            )
        x = y
        outputs.append(x)
        states.append(state)
    return tuple(outputs), tuple(states)


def replay_modules(modules: Sequence[nn.Module], x: Tensor, states: Sequence[ReplayState]) -> Tensor:
    """Apply modules in order with the replay state of an earlier pass."""
    for module, state in zip(modules, states, strict=True):
        rule = None if state is _NOTHING else _rule(module)
        x = module(x) if rule is None else rule[1](module, x, state)
    return x


def _record_dropout(module: nn.Module, x: Tensor) -> tuple[Tensor, ReplayState]:
    if not module.training:
        return module(x), _NOTHING
    mask = module(torch.ones_like(x))  # draws what the module itself would draw
    return x * mask, ReplayState(per_sample=(mask,))


def _record_batch_norm(module: nn.Module, x: Tensor) -> tuple[Tensor, ReplayState]:
    assert isinstance(module, _BatchNorm)
    if not module.training and module.running_mean is not None:
        return module(x), _NOTHING
    axes = [d for d in range(x.dim()) if d != 1]
    with torch.no_grad():
        variance, mean = torch.var_mean(at_least_float32(x), dim=axes, correction=0)
    return module(x), ReplayState(shared=(mean, variance))


def _replay_batch_norm(module: nn.Module, x: Tensor, state: ReplayState) -> Tensor:
    assert isinstance(module, _BatchNorm)
    mean, variance = state.shared
    return functional.batch_norm(x, mean, variance, module.weight, module.bias, training=False, eps=module.eps)


register_replay(_DropoutNd, _record_dropout, lambda module, x, state: x * state.per_sample[0])
register_replay(_BatchNorm, _record_batch_norm, _replay_batch_norm)
