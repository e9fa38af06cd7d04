"""Any module as a network of layers: recorded once, cut, and run by its plan at every step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.utils._pytree import tree_map

from targetprop.layers.plan import Plan, make_plan
from targetprop.layers.runner import MapUse, Mirror, OtherPathError, Runner
from targetprop.layers.sites import tensors_in
from targetprop.layers.tape import record

_TRIES = 3
_LABELS = ("labels", "label", "targets", "target")


@dataclass(frozen=True, eq=False)
class Pulled:
    """What came out of the backward pass of one layer, with mirrors for its weights.

    Attributes:
        below: the change of its input ``V_lᵀ… Δ_l``; None for the first layer.
        tensors: the gradients of its parameters, in their order.
        maps: the changes asked of the outputs ``z`` of its maps, in their order.
    """

    below: Tensor | None
    tensors: tuple[Tensor | None, ...]
    maps: tuple[Tensor | None, ...]


@dataclass(frozen=True, eq=False)
class CapturedRecord:
    """What a pass left of one layer.

    Attributes:
        name: the layer's name.
        x: its input ``h_{l-1}``, detached; the model's first tensor for the first layer.
        y: its output ``h_l`` with its graph, which begins at its input.
        tensors: its trainable parameters, and values made from parameters alone that it shares with other layers.
        maps: its uses of weights.
        start: where its graph begins; None for the first layer.
    """

    name: str
    x: Tensor
    y: Tensor
    tensors: tuple[Tensor, ...]
    maps: tuple[MapUse, ...]
    start: Tensor | None

    @property
    def h(self) -> Tensor:
        """The output ``h_l``, detached."""
        return self.y.detach()

    def pull(self, delta: Tensor, *, tensors: bool, maps: bool, below: bool = True, keep_graph: bool = False) -> Pulled:
        """Pull a change of the output back through the layer, with mirrors for its weights.

        Args:
            delta: ``Δ_l``, shape of ``h_l``.
            tensors: whether the gradients of parameters are wanted.
            maps: whether the changes asked of its maps are wanted.
            below: whether the change of its input is wanted.
            keep_graph: whether it will be pulled again.

        Returns:
            What was wanted.
        """
        lower = [self.start] if below and self.start is not None else []
        own = list(self.tensors) if tensors else []
        edges: list[Tensor | GradientEdge] = [m.output for m in self.maps if m.output is not None] if maps else []
        wanted = [*lower, *own, *edges]
        if not wanted:
            return Pulled(None, (), ())
        found = torch.autograd.grad(self.y, wanted, delta, retain_graph=keep_graph, allow_unused=True)
        asked = iter(found[len(lower) + len(own) :])
        changes = tuple(next(asked) if maps and m.output is not None else None for m in self.maps)
        moved = found[0] if lower else None
        if lower and moved is None:
            moved = torch.zeros_like(self.x)
        return Pulled(moved, tuple(found[len(lower) : len(lower) + len(own)]), changes)


@dataclass(frozen=True, eq=False)
class Pass:
    """A forward pass by plan.

    Attributes:
        layers: one record per layer, in forward order.
        output: what the model returned, made of the last layer's ``h_L``.
        rest: what follows the last layer, up to the loss; it begins at ``h_L``.
        derived: values made from parameters alone, as leaves and with their graphs, in the order of their making.
        plain: whether the output is ``h_L`` itself, and the loss is a function of it alone.
        finish: computes the loss from labels.
    """

    layers: tuple[CapturedRecord, ...]
    output: Any
    rest: CapturedRecord
    derived: tuple[tuple[Tensor, Tensor], ...]
    plain: bool
    finish: Callable[[Any], Tensor]


class Network:
    """A model of any kind as layers.

    Args:
        model: the module.
        style: the rule by which it is cut.
        loss: ``loss(output, y)``.
    """

    def __init__(self, model: nn.Module, style: str, loss: Callable[[Any, Any], Tensor]) -> None:
        """Keep the model."""
        self.model, self.style, self.loss = model, style, loss
        self._plans: dict[Any, Plan] = {}

    def record(self, x: Any, y: Any = None, *, labelled: bool = True) -> Plan:
        """Run the model once to make a plan; nothing of it stays.

        Args:
            x: the model's input: a tensor, a tuple of them, or a dictionary by keyword.
            y: labels.
            labelled: whether there are labels for the loss; otherwise the plan ends with the model's output.

        Returns:
            The plan.
        """
        x, y = tree_map(_renamed, x), tree_map(_renamed, y)  # people pass one tensor as input and labels
        inputs, labels = _split_labels(x)
        finish = (lambda output: self.loss(output, y)) if labelled else None
        before = _State(self.model)
        try:
            tape = record(self.model, lambda: call(self.model, x), inputs, finish, [*labels, *tensors_in(y)])
        finally:
            before.restore()
        return make_plan(tape, self.style)

    def run(self, x: Any, y: Any, mirror: Mirror) -> Pass:
        """Run the model by its plan, which is made, or made anew, where it has none that fits.

        Args:
            x: the model's input.
            y: labels, to see what the loss reaches when a plan is made.
            mirror: gives the mirror of a weight by its key.

        Returns:
            The pass.

        Raises:
            ValueError: the model makes other calls every time.
        """
        key = tuple(p.requires_grad for p in self.model.parameters())
        for _ in range(_TRIES):
            plan = self._plans.get(key)
            if plan is None:
                plan = self._plans[key] = self.record(x, y)
            before, runner = _State(self.model), Runner(plan, mirror)
            try:
                output = runner.run(lambda: call(self.model, x), ends=plan.plain)
                return self._collect(plan, runner, output, x)
            except OtherPathError:
                before.restore()
                del self._plans[key]
        raise ValueError("the model takes another path at every call, with the same input and the same random numbers")

    def _collect(self, plan: Plan, runner: Runner, output: Any, x: Any) -> Pass:
        parameters = dict(self.model.named_parameters())
        first = next(tensors_in(x))
        records = []
        for segment, stretch in zip(plan.segments, runner.stretches, strict=True):
            shared = [runner.derived[v.made or 0, v.output][0] for v in segment.derived]
            tensors = (*(parameters[name] for name in segment.parameters), *shared)
            given = first if stretch.start is None else stretch.start.detach()
            end = given if stretch.end is None else stretch.end
            records.append(CapturedRecord(segment.name, given, end, tensors, tuple(stretch.maps), stretch.start))

        def finish(y: Any) -> Tensor:
            return runner.run(lambda: self.loss(output, y), ends=not plan.plain)

        return Pass(tuple(records[:-1]), output, records[-1], tuple(runner.derived.values()), plan.plain, finish)


def call(model: nn.Module, x: Any) -> Any:
    """Call a model with a tensor, a tuple of positional or a dictionary of keyword inputs."""
    if isinstance(x, Mapping):
        return model(**x)
    return model(*x) if isinstance(x, tuple | list) else model(x)


def _renamed(t: Any) -> Any:
    return t.view_as(t) if isinstance(t, Tensor) else t


def _split_labels(x: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Tell labels that a model takes by keyword from its other inputs."""
    if not isinstance(x, Mapping):
        return list(tensors_in(x)), []
    labels = [t for name, t in x.items() if name in _LABELS and isinstance(t, Tensor)]
    return [t for t in tensors_in(x) if not any(t is label for label in labels)], labels


class _State:
    """What a forward pass moves: random numbers and buffers."""

    def __init__(self, model: nn.Module) -> None:
        """Remember it."""
        self._random = torch.get_rng_state()
        self._devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]

    @torch.no_grad()
    def restore(self) -> None:
        """Put it back."""
        torch.set_rng_state(self._random)
        if self._devices:
            torch.cuda.set_rng_state_all(self._devices)
        for buffer, before in self._buffers:
            if not torch.equal(buffer, before):
                buffer.copy_(before)
