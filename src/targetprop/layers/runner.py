"""Running a model by its plan: the same calls, with mirrors for the backward pass, and detached where layers end."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import tree_map

from targetprop.layers.plan import Action, Plan
from targetprop.layers.sites import Site, at, composite_kernels, memory, reading_mirrors, tensors_in
from targetprop.layers.tape import CountedMode

Mirror = Callable[[str, Tensor], Tensor | None]


class OtherPathError(RuntimeError):
    """The model made other calls than the plan knows."""


@dataclass(frozen=True, eq=False)
class MapUse:
    """A use of a weight in one pass.

    Attributes:
        site: where and how.
        weight: the weight.
        input: the activations that it was applied to; None where there are several.
        output: what autograd needs to name the result ``z``; None where it has no gradient.
        call: the function and its arguments.
    """

    site: Site
    weight: Tensor
    input: Tensor | None
    output: GradientEdge | None
    call: tuple[Callable[..., Any], Any, Mapping[str, Any]]


@dataclass(eq=False)
class Stretch:
    """What a pass left of one segment.

    Attributes:
        start: the activation that it began with, a leaf for autograd; None for the first.
        end: the activation that it ended with, with the graph from there.
        maps: the uses of weights.
        tensors: values made from parameters alone that other segments use too, as leaves.
    """

    start: Tensor | None = None
    end: Tensor | None = None
    maps: list[MapUse] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)


class Runner(CountedMode):
    """Runs a model by its plan.

    Args:
        plan: the plan.
        mirror: gives the mirror of a weight by its key; None for the weight itself.
    """

    def __init__(self, plan: Plan, mirror: Mirror) -> None:
        """Start before the first segment."""
        super().__init__()
        self.plan = plan
        self.stretches = [Stretch() for _ in plan.segments]
        self.derived: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._mirror = mirror
        self._actions = plan.actions

    def run(self, compute: Callable[[], Any], *, ends: bool) -> Any:
        """Run the model, or its loss.

        Args:
            compute: runs it.
            ends: whether the plan ends here.

        Returns:
            What it returned.

        Raises:
            OtherPathError: other calls were made than planned.
        """
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            if self.plan.custom:
                stack.enter_context(self.seeing_custom())
            stack.enter_context(self)
            result = compute()
        if ends and (self.count, self.signature) != (self.plan.total, self.plan.signature):
            raise OtherPathError
        return result

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a call, with what the plan says of it."""
        if self.opens(func):
            return self.run_opened(func, args, kwargs or {})
        index = self.number(func)
        action = self._actions.get(index)
        if action is None:
            return func(*args, **(kwargs or {}))
        return self._act(index, action, func, args, kwargs or {})

    def _act(self, index: int, action: Action, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if action.sites or action.gains:
            out = self._apply(action, func, args, kwargs)
        else:
            out = func(*args, **kwargs)
        for number in action.derived:
            out = self._share(out, index, number)
        if action.cut is not None:
            out = self._end(out, *action.cut)
        return out

    def _apply(self, action: Action, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        args, kwargs, casts = _cast(args, kwargs) if action.sites else (args, kwargs, {})
        weights: dict[int, tuple[Tensor, Callable[[], Tensor]]] = {}
        try:
            for site in action.sites:
                weight = at(site.weight, args, kwargs)
                weights[memory(weight)] = (weight, partial(self._mirror_of, site.key, casts.get(id(weight), weight)))
            if any(site.copied for site in action.sites):
                out = self._split(action, func, args, kwargs)
            else:
                with reading_mirrors(weights, copied=action.gains), composite_kernels(action.sites):
                    out = func(*args, **kwargs)
        except (IndexError, KeyError, AttributeError) as error:
            raise OtherPathError from error
        output = get_gradient_edge(out) if isinstance(out, Tensor) and out.requires_grad else None
        for site in action.sites:
            given = None if site.input is None else at(site.input, args, kwargs).detach()
            weight = at(site.weight, args, kwargs)
            use = MapUse(site, casts.get(id(weight), weight), given, output, (func, args, kwargs))
            self.stretches[action.layer].maps.append(use)
        return out

    def _split(self, action: Action, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Compute a product twice: with the weight, for its own gradient, and with the mirror, for the activations'."""
        kept = {id(at(site.weight, args, kwargs)): site for site in action.sites}
        mirrors = {i: self._mirror_of(s.key, at(s.weight, args, kwargs)).detach().clone() for i, s in kept.items()}
        alone = tree_map(lambda t: t.detach() if isinstance(t, Tensor) and id(t) not in kept else t, (args, kwargs))
        mirrored = tree_map(lambda t: mirrors.get(id(t), t), (args, kwargs))
        moved = func(*mirrored[0], **mirrored[1])
        return func(*alone[0], **alone[1]) + (moved - moved.detach())

    def _mirror_of(self, key: str, weight: Tensor) -> Tensor:
        mirror = self._mirror(key, weight)
        return weight if mirror is None else mirror

    def _share(self, out: Any, index: int, number: int) -> Any:
        """Detach a value made from parameters alone; its users' gradients are carried on at the end."""
        original = _output(out, number)
        leaf = original.detach().requires_grad_()
        self.derived[index, number] = (leaf, original)
        return _replaced(out, number, leaf)

    def _end(self, out: Any, layer: int, number: int) -> Any:
        """End a layer: what follows begins at a leaf."""
        end = _output(out, number)
        leaf = end.detach().requires_grad_()
        self.stretches[layer].end = end
        self.stretches[layer + 1].start = leaf
        return _replaced(out, number, leaf)


def _output(out: Any, number: int) -> Tensor:
    found = list(tensors_in(out))
    if number >= len(found) or not found[number].requires_grad:
        raise OtherPathError
    return found[number]


def _replaced(out: Any, number: int, leaf: Tensor) -> Any:
    if isinstance(out, Tensor):
        return leaf
    flat = iter(range(number + 1))

    def walk(tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return leaf if next(flat, None) == number else tree
        if isinstance(tree, tuple | list):
            return type(tree)(walk(item) for item in tree)
        return tree

    return walk(out)


def _cast(args: Any, kwargs: Any) -> tuple[Any, Any, dict[int, Tensor]]:
    """Do what autocast would do inside the call, so that the copy of the weight that it keeps is known."""
    first = next(t for t in tensors_in((args, kwargs)))
    kind = first.device.type
    if not torch.is_autocast_enabled(kind):
        return args, kwargs, {}
    dtype, casts = torch.get_autocast_dtype(kind), {}

    def lower(tree: Any) -> Any:
        if isinstance(tree, Tensor):
            if not tree.is_floating_point() or tree.dtype is dtype:
                return tree
            low = tree.to(dtype)
            casts[id(low)] = tree
            return low
        return type(tree)(lower(item) for item in tree) if isinstance(tree, tuple | list) else tree

    return lower(args), {key: lower(value) for key, value in kwargs.items()}, casts


