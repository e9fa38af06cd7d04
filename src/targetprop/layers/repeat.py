"""Repeating a stretch of recorded calls on another input: ``f_l(h)`` again, with all else as it was in the pass.

The random numbers are the pass' own, the statistics of a batch norm and moving buffers are held at the pass' values,
and what feeds the stretch from beside is what it was. Only calls that lead from its input to its end are made.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from targetprop.layers.closed import Closed
from targetprop.layers.random_states import random_states, set_random_states
from targetprop.layers.sites import Place, composite_kernels, tensors_in
from targetprop.layers.tape import Call, Value
from targetprop.precision import at_least_float32

_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


@dataclass(frozen=True, eq=False)
class Repeated:
    """A call that is made again when its stretch is repeated.

    Attributes:
        layer: number of the stretch.
        call: what the recording knows of it.
        moving: the arguments that change with the input of the stretch: the way to each, and its value.
        held: the way to each other argument that is overwritten later.
    """

    layer: int
    call: Call
    moving: tuple[tuple[Place, Value], ...]
    held: tuple[Place, ...] = ()


@dataclass(frozen=True, eq=False)
class Step:
    """One call, to be made again.

    Attributes:
        repeated: what the recording knows of it.
        func: the function.
        args: its positional and its keyword arguments, with nothing where values of the stretch are put.
        random: states of the random numbers before the call; None if it draws none.
        writes: the way to what it writes into beside the values that are put; it writes into copies.
        given: the first of the values that are put, detached, and its version then; None unless asked for.
    """

    repeated: Repeated
    func: Callable[..., Any]
    args: tuple[list[Any], dict[str, Any]]
    random: list[Tensor] | None
    writes: tuple[Place, ...] = ()
    given: tuple[Tensor, int] | None = None


def repeated_calls(layer: int, calls: Iterable[Call], start: Value, *, trained: bool = True) -> Iterator[Repeated]:
    """Find the calls that lead on from the input of a stretch, of those that autograd follows or of all."""
    reached = {id(start)}
    for call in calls:
        given = list(zip(call.places, call.inputs, strict=False))
        moving = tuple((p, v) for p, v in given if id(v) in reached)
        made = [v for v in call.outputs if v.data and (v.trained or not trained)]
        if made and any(id(v) in reached for v in call.inputs):
            held = tuple(p for p, v in given if id(v) not in reached and not (v.fixed or v.parameter))
            reached.update(map(id, made))
            yield Repeated(layer, call, moving, held)


def keep_step(
    repeated: Repeated, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], *, values: bool
) -> Step:
    """Keep a call before it is made, but for the values that change, and if asked to the first of those beside it."""
    given = _get((args, kwargs), repeated.moving[0][0]) if values and repeated.moving else None
    writes = repeated.call.writes
    if func is functional.batch_norm:
        (args, kwargs), writes = _with_fixed_statistics(args, kwargs), ()
    kept: Any = (list(args), dict(kwargs))
    moving = {place for place, _ in repeated.moving}
    fixed = tuple(place for place in writes if place not in moving)
    for place in {*fixed, *(repeated.held if func is not functional.batch_norm else ())}:
        kept = _put(kept, place, _get(kept, place).detach().clone())
    for place in moving:
        kept = _put(kept, place, None)
    random = None
    if repeated.call.random:
        random = func.before if isinstance(func, Closed) else random_states()
    return Step(repeated, func, kept, random, fixed, None if given is None else (given.detach(), given._version))


def repeat(steps: Iterable[Step], start: Value, end: Value, x: Tensor) -> Tensor:
    """Make calls again.

    Args:
        steps: the calls.
        start: the value that they begin with.
        end: the value that they end with.
        x: another input, shape of `start`.

    Returns:
        What `end` becomes.

    Raises:
        ValueError: a value that is needed was not made again.
    """
    values: dict[int, Any] = {id(start): x}
    for step in steps:
        args = step.args
        call, moving = step.repeated.call, step.repeated.moving
        for place, value in moving:
            if id(value) not in values:
                raise ValueError(
                    f"{call.path or 'the model'}: {call.name} reads what was written through a view of other memory, or"
                    " what is not there for fewer samples; write by index, as in out[:, :3] = h"
                )
            args = _put(args, place, values[id(value)])
        for place in step.writes:
            args = _put(args, place, _get(args, place).clone())
        out = _run(step, args)
        made = [args[0][0]] if call.name == "__setitem__" else list(tensors_in(out))
        values |= {id(value): made[value.output] for value in call.outputs if value.output < len(made)}
        for before, after in call.rewritten:
            values.pop(id(after))
            if id(before) in values:
                values[id(after)] = values[id(before)]
    return values[id(end)]


def _run(step: Step, args: tuple[list[Any], dict[str, Any]]) -> Any:
    call = step.repeated.call
    followed = any(value.trained for value in call.outputs)  # or it ran under no_grad
    with composite_kernels(call.sites), nullcontext() if followed else torch.no_grad():
        return _run_alike(step, args)


def _run_alike(step: Step, args: tuple[list[Any], dict[str, Any]]) -> Any:
    if step.random is None:
        return step.func(*args[0], **args[1])
    now = random_states()
    try:
        set_random_states(step.random)
        return step.func(*args[0], **args[1])
    finally:
        set_random_states(now)


def _get(tree: Any, place: Place) -> Any:
    for key in place:
        tree = getattr(tree, str(key)) if isinstance(tree, slice) else tree[key]
    return tree


def _put(tree: Any, place: Place, value: Any) -> Any:
    """Copy nested arguments with another value at one place."""
    if not place:
        return value
    key, rest = place[0], place[1:]
    if isinstance(tree, slice):
        parts = {name: getattr(tree, name) for name in ("start", "stop", "step")} | {str(key): value}
        return slice(parts["start"], parts["stop"], parts["step"])
    if isinstance(tree, Mapping):
        return {**tree, key: _put(tree[key], rest, value)}
    items = list(tree)
    items[int(key)] = _put(items[int(key)], rest, value)
    return type(tree)(items) if isinstance(tree, tuple | list) else items


def _with_fixed_statistics(args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """Let a batch norm that measures its batch use what it measures now."""
    given = dict(zip(_NORM, args, strict=False)) | dict(kwargs)
    if not given.get("training"):
        return args, kwargs
    x = given["input"].detach()
    axes = [d for d in range(x.dim()) if d != 1]
    variance, mean = torch.var_mean(at_least_float32(x), dim=axes, correction=0)
    fixed = (given["input"], mean, variance, given.get("weight"), given.get("bias"), False, 0.0, given.get("eps", 1e-5))
    return fixed, {}
