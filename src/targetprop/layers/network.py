"""Any module as a network of layers: recorded once, cut, and run by its plan at every step."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from targetprop.layers.chain import Chain, Cut, Model, NamedLayers, build_chain
from targetprop.layers.inputs import Stack, call, split_labels
from targetprop.layers.loss import evaluate_loss
from targetprop.layers.plan import Plan, make_plan
from targetprop.layers.record import LossGradient, Record
from targetprop.layers.recorder import record
from targetprop.layers.runner import Mirror, OtherPathError, Runner
from targetprop.layers.segment_record import SegmentLayer, SegmentRecord
from targetprop.layers.sites import tensors_in
from targetprop.layers.undone import ForwardState, without_hooks
from targetprop.peers import Peers

_TRIES = 3


class Network(NamedLayers):
    """A model of any kind as layers.

    Args:
        model: the module, or modules in order, each of which becomes one layer.
        style: the rule by which it is cut.
        loss: ``loss(output, y)``.
        root: the module after whose members weights are named; `model` if None.
    """

    def __init__(
        self, model: Model, style: Cut, loss: Callable[[Any, Any], Tensor], root: nn.Module | None = None
    ) -> None:
        """Keep the model."""
        model = getattr(model, "_orig_mod", model)  # of a compiled copy
        self.model = model if isinstance(model, nn.Module) else Stack(model)
        self.style: Cut = style
        self.loss, self.root = loss, self.model if root is None else root
        self._plans: dict[Any, Plan] = {}
        self.layers = ()

    def kinds(self) -> dict[str, str]:
        """Say how each layer is inverted: by mirrors of its weights, or where it has none by its own derivative."""
        return {
            layer.name: "mirrored" if any(site.needed for site in layer.segment.sites) else "own derivative"
            for layer in self.layers[1:]
            if isinstance(layer, SegmentLayer) and layer.segment is not None
        }

    def modules(self) -> Iterator[nn.Module]:
        """Yield the model's modules."""
        return self.model.modules()

    def stage(self, own: range) -> "Network":
        """Cut out the layers of one process, where layers are whole modules.

        Args:
            own: numbers of the layers.

        Returns:
            Their network.

        Raises:
            ValueError: the layers are not whole modules, applied in order.
        """
        model = dict(self.model.named_children()) if isinstance(self.model, Stack) else self.model
        layers = build_chain(model, self.style).layers if isinstance(model, dict | nn.Sequential) else ()
        if [layer.name for layer in layers] != self.names:
            raise ValueError(
                "a placement needs layers that are whole modules, applied in order; write the model as an nn.Sequential"
                " or a list of such modules"
            )
        self.layers = tuple(
            replace(layer, modules=whole.modules) for layer, whole in zip(self.layers, layers, strict=True)
        )
        parts = {layer.name: nn.Sequential(*layer.modules) for layer in layers[own.start : own.stop]}
        return Network(parts, self.style, self.loss, root=self.root)

    def record(self, x: Any, y: Any = None, *, labelled: bool = True, silent: bool = True) -> Plan:
        """Run the model once to make a plan; nothing of it stays but the layers.

        Args:
            x: the model's input: a tensor, a tuple of them, or a dictionary by keyword.
            y: labels.
            labelled: whether there are labels for the loss; otherwise the plan ends with the model's output.
            silent: leave the user's forward hooks out, which are to see nothing but batches.

        Returns:
            The plan.

        Raises:
            ValueError: the model cannot be trained.
        """
        x, y = tree_map(_renamed, x), tree_map(_renamed, y)  # people pass one tensor as input and labels
        inputs, labels = split_labels(x)
        finish = (lambda output: evaluate_loss(self.loss, output, y)) if labelled else None
        with self.undone(), without_hooks(self.model if silent else None):
            tape = record(
                [self.model, self.root], lambda: call(self.model, x), inputs, finish, [*labels, *tensors_in(y)]
            )
        ends = self.model.ends(tape.ends) if isinstance(self.model, Stack) else None
        unrelated = labelled and tape.output is not None and tape.output.data and tape.output.trained
        if not tape.results or (unrelated and not any(value.data for value in tape.results)):
            raise ValueError(
                "the loss does not depend on the output; compute it from that, without detach or item"
                if labelled
                else "the model has no trainable parameter; call requires_grad_(True) on those to train"
            )
        plan = make_plan(tape, self.style, ends)
        if plan.problems:
            raise ValueError(plan.problems[0])
        self.layers = tuple(SegmentLayer(s.name, (), s, self.model) for s in plan.layers)
        return plan

    def example(self, x: Any) -> Record:
        """Run the model on an example, to see its layers; nothing of it stays.

        Args:
            x: the model's input.

        Returns:
            The record, up to the loss if the model computes that from its inputs.
        """
        with self.undone(), without_hooks(self.model):
            return self.run(x, None, lambda key, weight: None, Peers(), repeats=False, labelled=self._knows_loss(x))

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Put random numbers and buffers back afterwards."""
        before = ForwardState(self.model.modules())
        try:
            yield
        finally:
            before.restore()

    def _knows_loss(self, x: Any) -> bool:
        """Try whether the loss needs no labels beside the inputs."""
        try:
            self.record(x)
        except Exception:  # whatever the user's loss raises for labels that are None
            return False
        return True

    def run(self, x: Any, y: Any, mirror: Mirror, peers: Peers, *, repeats: bool, labelled: bool = True) -> Record:
        """Run the model by its plan, which is made, or made anew, where it has none that fits.

        Args:
            x: the model's input.
            y: labels, to see what the loss reaches when a plan is made.
            mirror: gives the mirror of a weight by its key.
            peers: the processes that share samples.
            repeats: whether layers will be repeated on other inputs.
            labelled: whether there are labels.

        Returns:
            The record.

        Raises:
            ValueError: the model makes other calls every time.
        """
        x = tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, x)
        batch, own = peers.batch(len(next(tensors_in(x)))), peers.own(len(self.layers))
        if own.start > 0:
            x = peers.receive_input(x).detach().requires_grad_()
        modules = dict(self.model.named_modules())
        parameters = _parameters(modules if self.root is self.model else dict(self.root.named_modules()))
        modes = tuple(module.training for module in modules.values())
        key = (labelled, modes, tuple(p.requires_grad for p in parameters.values()))
        for attempt in range(_TRIES):
            plan = self._plans.get(key)
            if plan is None:  # hooks that make torch calls have to be seen
                plan = self._plans[key] = self.record(x, y, labelled=labelled, silent=attempt == 0)
            before, runner = ForwardState(modules.values()), Runner(plan, mirror, parameters, repeats=repeats)
            try:
                value = self._run(plan, runner, x, y, labelled)
                break
            except OtherPathError:
                before.restore()
                del self._plans[key]
        else:
            raise ValueError(
                "the model takes another path at every call, with the same input and the same random numbers"
            )
        records = self._collect(plan, runner, parameters, x)
        loss = _differentiate(records[-1], value) if labelled and value is not None else None
        derived, rest = tuple(runner.derived.values()), runner.stretches[-1].maps
        layers, output = tuple(records[:-1]), peers.send_output(records[-1].x)
        return Record(layers, output, batch, own.start == 0, loss=loss, derived=derived, rest=rest)

    def _run(self, plan: Plan, runner: Runner, x: Any, y: Any, labelled: bool) -> Tensor | None:
        """Run the model, and its loss where that is a part of the plan."""
        output = runner.run(lambda: call(self.model, x), ends=plan.plain)
        return (
            None
            if plan.plain
            else runner.run(lambda: evaluate_loss(self.loss, output, y) if labelled else None, ends=True)
        )

    def _collect(
        self, plan: Plan, runner: Runner, parameters: Mapping[str, nn.Parameter], x: Any
    ) -> list[SegmentRecord]:
        below, begin = next(tensors_in(x)), plan.start
        if plan.start is not None:
            runner.stretches[0].start = below
        records: list[SegmentRecord] = []
        for segment, stretch in zip(plan.segments, runner.stretches, strict=True):
            shared = [runner.derived[v.made or 0, v.output][0] for v in segment.derived]
            tensors = (*(parameters[name] for name in segment.parameters), *shared)
            given = below.detach() if stretch.start is None else stretch.start.detach()
            records.append(
                SegmentRecord(
                    SegmentLayer(segment.name, (), segment, self.model),
                    given,
                    given if stretch.end is None else stretch.end,
                    tensors=tensors,
                    uses=tuple(stretch.maps),
                    start=stretch.start,
                    steps=tuple(stretch.steps),
                    begin=begin,
                )
            )
            begin = segment.end
        return records


def _differentiate(rest: SegmentRecord, value: Tensor) -> LossGradient:
    """Differentiate a loss in ``h_L``, and in the parameters that it reaches beside."""
    top = [] if rest.start is None else [rest.start]
    found = torch.autograd.grad(value, [*top, *rest.tensors], allow_unused=True)
    beside = zip(rest.tensors, found[len(top) :], strict=True)
    gradient = found[0] if top and found[0] is not None else torch.zeros_like(rest.x)
    return LossGradient(value.detach(), gradient, {p: g for p, g in beside if g is not None})


Layered = Chain | Network


def _renamed(t: Any) -> Any:
    return t.view_as(t) if isinstance(t, Tensor) else t


def _parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Name the parameters as `torch.nn.Module.named_parameters` does; one that is shared by its first name."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for prefix, module in modules.items():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), (f"{prefix}.{name}" if prefix else name, parameter))
    return dict(found.values())
