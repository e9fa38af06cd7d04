"""Running a model by its plan: the same calls, with mirrors for the backward pass, and detached where layers end."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_map

from targetprop.layers.counted import CountedMode
from targetprop.layers.plan import Action, Plan
from targetprop.layers.record import MapUse
from targetprop.layers.repeat import Step, keep_step
from targetprop.layers.sites import (
    Site,
    as_autocast,
    at,
    bias_of,
    composite_kernels,
    memory,
    reading_mirrors,
    same_view,
    tensors_in,
    told_apart,
)

Mirror = Callable[[str, Tensor], Tensor | None] | None


class OtherPathError(Exception):
    """The model made other calls than the plan knows."""


@dataclass(eq=False)
class Stretch:
    """What a pass left of one segment.

    Attributes:
        start: the activation that it began with, a leaf for autograd; None for the first.
        end: the activation that it ended with, with the graph from there.
        maps: the uses of weights.
        steps: the calls, to be made again on other inputs; empty unless asked for.
    """

    start: Tensor | None = None
    end: Tensor | None = None
    maps: list[MapUse] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


class Runner(CountedMode):
    """Runs a model by its plan.

    Args:
        plan: the plan.
        mirror: gives the mirror of a weight by its key, or None for the weight itself; None where there are none.
        parameters: the model's parameters, and what is trained beside them, by name.
        closed: the modules that count as one call each, by name.
        repeats: whether layers will be repeated on other inputs.
        connected: leave the graph in one piece where layers end.
    """

    def __init__(
        self,
        plan: Plan,
        mirror: Mirror,
        parameters: Mapping[str, Tensor],
        closed: Mapping[str, nn.Module],
        *,
        repeats: bool,
        connected: bool = False,
    ) -> None:
        """Start before the first segment."""
        super().__init__(by_maps=plan.by_maps)
        self.plan = plan
        self.stretches = [Stretch() for _ in plan.segments]
        self.derived: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._mirror, self._parameters, self._closed = mirror, parameters, closed
        self._actions, self._connected = plan.actions, connected
        self._repeated = plan.repeated if repeats else {}

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
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # calls of compiled code are not seen
            if self.plan.custom:
                stack.enter_context(self.seeing_custom())
            stack.enter_context(self.closing(self._closed))
            stack.enter_context(self)
            result = compute()
        if ends and (self.count, self.signature) != (self.plan.total, self.plan.signature):
            raise OtherPathError
        return result

    def leaves(self) -> set[Tensor]:
        """Collect the leaves that the pass has made."""
        return {leaf for leaf, _ in self.derived.values()} | {s.start for s in self.stretches if s.start is not None}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a call, with what the plan says of it."""
        if self.inside:
            return func(*args, **(kwargs or {}))
        if self.opens(func, args):
            return self.run_opened(func, args, kwargs or {})
        index = self.number(func)
        if index in self._repeated:
            repeated = self._repeated[index]
            if func.__name__ != repeated.call.name:
                raise OtherPathError
            step = keep_step(repeated, func, args, kwargs or {}, values=self._mirror is None)  # decoders look at them
            self.stretches[repeated.layer].steps.append(step)
        action = self._actions.get(index)
        if action is None:
            return func(*args, **(kwargs or {}))
        return self._act(index, action, func, args, kwargs or {})

    def _act(self, index: int, action: Action, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if func.__name__ != action.name:
            raise OtherPathError
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
        """Run a call whose backward pass has to read mirrors, and note its uses of weights."""
        given, mirrored = (args, kwargs), self._mirror is not None
        args, kwargs = as_autocast(args, kwargs) if action.sites and mirrored else given
        try:
            if mirrored and len(action.sites) > 1:
                args, kwargs = told_apart(action.sites, args, kwargs)
            used = [(site, at(site.weight, *given), at(site.weight, args, kwargs)) for site in action.sites]
        except (IndexError, KeyError, AttributeError) as error:
            raise OtherPathError from error
        views = {
            id(low): partial(_view, self._mirror, site.key, self._base(site, weight), weight)
            for site, weight, low in used
            if site.needed
        }
        if not mirrored:
            out = func(*args, **kwargs)
        elif any(site.copied for site in action.sites):
            out = self._split(views, func, args, kwargs)
        else:
            weights = {memory(low): (low, views[id(low)]) for site, _, low in used if site.needed}
            with reading_mirrors(weights, self._memory if action.gains else ()), composite_kernels(action.sites):
                out = func(*args, **kwargs)
        output = get_gradient_edge(out) if isinstance(out, Tensor) and out.requires_grad else None
        maps, call = self.stretches[action.layer].maps, (func, *given)
        for site, weight, _ in used:
            bias = bias_of(site, *given)
            bias = bias if isinstance(bias, nn.Parameter) and bias.requires_grad else None
            a = None if site.input is None else at(site.input, args, kwargs).detach()
            times = self.plan.times[site.key]
            maps.append(MapUse(site, weight, self._base(site, weight), bias, a, output, call, times))
        return out

    def _base(self, site: Site, weight: Tensor) -> Tensor:
        return self._parameters.get(site.key, weight)

    @cached_property
    def _memory(self) -> set[int]:
        return {memory(p) for p in self._parameters.values()}

    def _split(
        self, views: Mapping[int, Callable[[], Tensor]], func: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """Compute a product twice: with the weight, for its own gradient, and with the mirror, for the activations'."""
        mirrors = {i: view().detach().clone() for i, view in views.items()}
        alone = tree_map(lambda t: t.detach() if isinstance(t, Tensor) and id(t) not in views else t, (args, kwargs))
        mirrored = tree_map(lambda t: mirrors.get(id(t), t), (args, kwargs))
        moved = func(*mirrored[0], **mirrored[1])
        return func(*alone[0], **alone[1]) + (moved - moved.detach())

    def _share(self, out: Any, index: int, number: int) -> Any:
        """Detach a value made from parameters alone; its users' gradients are carried on at the end."""
        original = _output(out, number)
        leaf = original.detach().requires_grad_()
        self.derived[index, number] = (leaf, original)
        return _replaced(out, number, leaf)

    def _end(self, out: Any, layer: int, number: int) -> Any:
        """End a layer: what follows begins at a leaf, unless the graph stays in one piece."""
        end = _output(out, number)
        leaf = end if self._connected else end.detach().requires_grad_()
        self.stretches[layer].end = end
        self.stretches[layer + 1].start = leaf
        return _replaced(out, number, leaf)


def _view(mirror: Mirror, key: str, base: Tensor, weight: Tensor) -> Tensor:
    """Give the mirror in the view that the weight is of its parameter; autograd holds on to no more than it needs."""
    found = None if mirror is None else mirror(key, base)
    return weight if found is None else same_view(found, base, weight)


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
