"""Any module as a network of layers: recorded once, cut, and run by its plan at every step."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from targetprop.layers.inputs import Stack, call, leaves, split_labels
from targetprop.layers.layer import Cut, Layer, Model
from targetprop.layers.loss import evaluate_loss
from targetprop.layers.plan import Plan, make_plan
from targetprop.layers.record import LayerRecord, LossGradient, Record
from targetprop.layers.recorder import record
from targetprop.layers.runner import Mirror, OtherPathError, Runner
from targetprop.layers.sites import tensors_in
from targetprop.layers.undone import ForwardState, without_hooks
from targetprop.peers import Peers

_TRIES = 3


class Network:
    """A model of any kind as layers.

    Args:
        model: the module, or modules in order, each of which becomes one layer.
        style: the rule by which it is cut.
        loss: ``loss(output, y)``.
        root: the module after whose members weights are named; `model` if None.
        derivatives: whether changes go down through the derivatives of layers; where not, modules that autograd cannot
            see into count as one call each.
        own: classes of modules that do so anyway.
        ends: names of modules after each of which a layer ends, where `style` does not decide.

    Attributes:
        layers: ``f_1 … f_L`` as they were when the model was last recorded.
    """

    layers: tuple[Layer, ...]

    def __init__(
        self,
        model: Model,
        style: Cut,
        loss: Callable[[Any, Any], Tensor] | None = None,
        root: nn.Module | None = None,
        *,
        derivatives: bool = True,
        own: tuple[type[nn.Module], ...] = (),
        ends: Sequence[str] | None = None,
    ) -> None:
        """Keep the model."""
        model = getattr(model, "_orig_mod", model)  # of a compiled copy
        self.model = model if isinstance(model, nn.Module) else Stack(model)
        self.style: Cut = style
        self.loss: Callable[[Any, Any], Any] = _nothing if loss is None else loss
        self.root = self.model if root is None else root
        self.derivatives, self._own, self._ends = derivatives, own, ends
        self._plans: dict[Any, Plan] = {}
        self.layers = ()

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def names(self) -> list[str]:
        """Layer names in forward order."""
        return [layer.name for layer in self.layers]

    def check_names(self, names: Iterable[str], what: str) -> None:
        """Refuse names that are no layer of this network.

        Args:
            names: the names to look for.
            what: what the names were given for, used in the message.

        Raises:
            ValueError: a name is unknown.
        """
        for name in names:
            if name not in self.names:
                raise ValueError(f"{what} names layer {name!r}, but the layers are {', '.join(self.names)}")

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
        whole = self._whole_modules()
        if whole is None:
            raise ValueError(
                "a placement needs layers that are whole modules, applied in order; write the model as an nn.Sequential"
                " or a list of such modules"
            )
        self.layers = tuple(
            replace(layer, modules=tuple(modules)) for layer, modules in zip(self.layers, whole, strict=True)
        )
        parts = {layer.name: nn.Sequential(*layer.modules) for layer in self.layers[own.start : own.stop]}
        return Network(parts, self.style, self.loss, self.root, derivatives=self.derivatives, own=self._own)

    def _whole_modules(self) -> list[list[nn.Module]] | None:
        """List the modules of every layer; None if one of them is in several layers, or they are not in order."""
        if not isinstance(self.model, Stack | nn.Sequential):
            return None
        found: list[list[nn.Module]] = [[] for _ in self.layers]
        reached = 0
        for name, module in leaves(self.model):
            inside = [
                number
                for number, layer in enumerate(self.layers)
                if any(call.path == name or call.path.startswith(f"{name}.") for call in layer.segment.calls)
            ]
            if len(inside) > 1 or (inside and inside[0] < reached):
                return None
            reached = inside[0] if inside else reached
            found[reached].append(module)
        return found if all(found) else None

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
        closed = {name: m for name, m in self.model.named_modules() if isinstance(m, self._own)} if self._own else {}
        given = [*labels, *tensors_in(y)]
        while True:
            with self.undone(), without_hooks(self.model if silent else None):
                tape = record([self.model, self.root], lambda: call(self.model, x), inputs, finish, given, closed)
            found = {} if self.derivatives else _innermost(tape.opaque, self.model)
            if found.keys() <= closed.keys():
                break
            closed |= found
        ends = self._where_layers_end(tape.ends)
        unrelated = labelled and tape.output is not None and tape.output.data and tape.output.trained
        if not tape.results or (unrelated and not any(value.data for value in tape.results)):
            raise ValueError(
                "the loss does not depend on the output; compute it from that, without detach or item"
                if labelled
                else "the model has no trainable parameter; call requires_grad_(True) on those to train"
            )
        plan = make_plan(tape, self.style, ends, derivatives=self.derivatives)
        if plan.problems:
            raise ValueError(plan.problems[0])
        self.layers = tuple(Layer(segment, self.root) for segment in plan.layers)
        return plan

    def _where_layers_end(self, returned: Mapping[str, Sequence[int]]) -> dict[str, int] | None:
        """Say at which torch call each layer ends, by its name; None where the style decides."""
        if self._ends is None:
            return self.model.ends(returned) if isinstance(self.model, Stack) else None
        for name in self._ends:
            if name not in returned:
                near = get_close_matches(name, returned, 3, 0.3) or list(returned)[1:4]
                raise ValueError(
                    f"layers names module {name!r}, which the model does not run; it runs {', '.join(near)}"
                )
        each = [(place, name, turn) for name in self._ends for turn, place in enumerate(returned[name])]
        return {f"{name}@{turn + 1}" if turn else name: place for place, name, turn in sorted(each)}

    def example(self, x: Any) -> Record:
        """Run the model on an example, to see its layers; nothing of it stays.

        Args:
            x: the model's input.

        Returns:
            The record, up to the loss if the model computes that from its inputs.
        """
        with self.undone(), without_hooks(self.model):
            return self.run(x, None, None, Peers(), repeats=not self.derivatives, labelled=self._knows_loss(x))

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

    def run(
        self,
        x: Any,
        y: Any,
        mirror: Mirror,
        peers: Peers,
        *,
        repeats: bool,
        labelled: bool = True,
        from_input: bool = False,
        connected: bool = False,
    ) -> Record:
        """Run the model by its plan, which is made, or made anew, where it has none that fits.

        Args:
            x: the model's input.
            y: labels, to see what the loss reaches when a plan is made.
            mirror: gives the mirror of a weight by its key.
            peers: the processes that share samples.
            repeats: whether layers will be repeated on other inputs.
            labelled: whether there are labels.
            from_input: whether the first layer will be repeated as well; the input is one tensor then.
            connected: leave the graph in one piece where layers end, if the loss reaches no parameter of theirs by
                another way.

        Returns:
            The record.

        Raises:
            ValueError: the model makes other calls every time.
        """
        x = tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, x)
        batch, own = peers.batch(len(next(tensors_in(x)))), peers.own(len(self.layers))
        x = peers.receive_input(x)
        if own.start > 0 or from_input:
            x = x.detach().requires_grad_()
        modules = dict(self.model.named_modules())
        parameters = _parameters(modules if self.root is self.model else dict(self.root.named_modules()))
        modes = tuple(module.training for module in modules.values())
        key = (labelled, from_input, modes, tuple(p.requires_grad for p in parameters.values()))
        for attempt in range(_TRIES):
            plan = self._plans.get(key)
            if plan is None:  # hooks that make torch calls have to be seen
                plan = self._plans[key] = self.record(x, y, labelled=labelled, silent=attempt == 0)
            closed = {name: modules[name] for name in plan.closed}
            connected = connected and not plan.reached_twice
            runner = Runner(plan, mirror, parameters, closed, repeats=repeats, connected=connected)
            before = ForwardState(modules.values())
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
        first = own.start == 0
        return Record(layers, output, batch, first, loss=loss, derived=derived, rest=rest, connected=connected)

    def _run(self, plan: Plan, runner: Runner, x: Any, y: Any, labelled: bool) -> Tensor | None:
        """Run the model, and its loss where that is a part of the plan."""
        output = runner.run(lambda: call(self.model, x), ends=plan.plain)
        return (
            None
            if plan.plain
            else runner.run(lambda: evaluate_loss(self.loss, output, y) if labelled else None, ends=True)
        )

    def _collect(self, plan: Plan, runner: Runner, parameters: Mapping[str, nn.Parameter], x: Any) -> list[LayerRecord]:
        below = next(tensors_in(x))
        if plan.segments[0].start is not None:
            runner.stretches[0].start = below
        records: list[LayerRecord] = []
        for segment, stretch in zip(plan.segments, runner.stretches, strict=True):
            shared = [runner.derived[v.made or 0, v.output][0] for v in segment.derived]
            tensors = (*(parameters[name] for name in segment.parameters), *shared)
            given = below.detach() if stretch.start is None else stretch.start.detach()
            records.append(
                LayerRecord(
                    Layer(segment, self.root),
                    given,
                    given if stretch.end is None else stretch.end,
                    tensors,
                    tuple(stretch.maps),
                    stretch.start,
                    tuple(stretch.steps),
                )
            )
        return records


def _differentiate(rest: LayerRecord, value: Tensor) -> LossGradient:
    """Differentiate a loss in ``h_L``, and in the parameters that it reaches beside."""
    top = [] if rest.start is None else [rest.start]
    found = torch.autograd.grad(value, [*top, *rest.parameters], allow_unused=True)
    beside = zip(rest.parameters, found[len(top) :], strict=True)
    gradient = found[0] if top and found[0] is not None else torch.zeros_like(rest.x)
    return LossGradient(value.detach(), gradient, {p: g for p, g in beside if g is not None})


def record_layers(model: Model, x: Tensor, cut: Cut = "post-activation") -> Record:
    """Run a model once into a record of its layers, all of which can be repeated, the first as well.

    Args:
        model: the model.
        x: its input.
        cut: where layers begin and end.

    Returns:
        The record.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    >>> [layer.name for layer in record_layers(net, torch.ones(5, 4)).layers]
    ['1', '3']
    """
    return Network(model, cut).run(x, None, None, Peers(), repeats=True, labelled=False, from_input=True)


def _innermost(opaque: Iterable[str], model: nn.Module) -> dict[str, nn.Module]:
    """Find the modules that let no gradient through, but neither those around them nor those made on the way."""
    named = [name.split(": ") for name in opaque]
    found = {name: m for name, kind in named if type(m := model.get_submodule(name)).__name__ == kind}
    around = {
        name for name in found for other in found if other != name and other.startswith(f"{name}." if name else "")
    }
    return {name: m for name, m in found.items() if name not in around}


def _nothing(output: Any, y: Any) -> Any:
    raise ValueError("this network was given no loss")


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
