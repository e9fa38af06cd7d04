"""Any module as a network of layers: recorded once, cut, and run by its plan at every step."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from targetprop.layers.collect import collect, differentiate, named_parameters
from targetprop.layers.inputs import Stack, call
from targetprop.layers.layer import Cut, Layer, Model
from targetprop.layers.loss import evaluate_loss, modules_of
from targetprop.layers.plan import Plan
from targetprop.layers.planning import Cutting, plan_model
from targetprop.layers.record import Record
from targetprop.layers.runner import Mirror, OtherPathError, Runner
from targetprop.layers.sites import tensors_in
from targetprop.layers.stage import whole_modules
from targetprop.layers.undone import ForwardState, unseen, without_hooks
from targetprop.peers import Peers

_TRIES = 3


@dataclass(frozen=True)
class Pass:
    """What is wanted of a pass.

    Attributes:
        mirror: gives the mirror of a weight by its key; None to read weights.
        repeats: whether layers will be repeated on other inputs.
        labelled: whether there are labels for the loss.
        from_input: whether the first layer will be repeated as well; the input is one tensor then.
        connected: leave the graph in one piece where layers end, if the loss reaches no parameter of theirs by another
            way.
    """

    mirror: Mirror = None
    repeats: bool = True
    labelled: bool = False
    from_input: bool = False
    connected: bool = False


class Network:
    """A model of any kind as layers.

    Args:
        model: the module, or modules in order, each of which becomes one layer.
        cutting: how it is cut.
        loss: ``loss(output, y)``.
        root: the module after whose members weights are named; `model` if None.

    Attributes:
        layers: ``f_1 … f_L`` as they were when the model was last recorded.
    """

    def __init__(
        self,
        model: Model,
        cutting: Cutting | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        root: nn.Module | None = None,
    ) -> None:
        """Keep the model."""
        model = getattr(model, "_orig_mod", model)  # of a compiled copy
        self.model = model if isinstance(model, nn.Module) else Stack(model)
        lazy = next((name for name, p in self.model.named_parameters() if is_lazy(p)), None)
        if lazy is not None:
            raise ValueError(f"{lazy} has no shape yet; call the model once on an input before")
        self.cutting = Cutting() if cutting is None else cutting
        self.loss: Callable[[Any, Any], Any] = _nothing if loss is None else loss
        self._beside = modules_of(self.loss)
        self.root = self.model if root is None else root
        self._plans: dict[Any, Plan] = {}
        self.layers: tuple[Layer, ...] = ()

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
        """Cut out the layers of one process; where layers are not whole modules that is a ``ValueError``.

        Args:
            own: numbers of the layers.

        Returns:
            Their network.
        """
        whole = whole_modules(self.model, self.layers)
        self.layers = tuple(replace(layer, modules=modules) for layer, modules in zip(self.layers, whole, strict=True))
        parts = {layer.name: nn.Sequential(*layer.modules) for layer in self.layers[own.start : own.stop]}
        return Network(parts, replace(self.cutting, ends=None), self.loss, self.root)

    def plan(self, x: Any, y: Any = None, *, labelled: bool = True, silent: bool = True) -> Plan:
        """Record the model, and take over its layers; see `targetprop.layers.planning.plan_model`."""
        plan = plan_model(self.model, self.root, self.loss, self.cutting, x, y, labelled=labelled, silent=silent)
        self.layers = tuple(Layer(segment, self.root) for segment in plan.layers)
        return plan

    def example(self, x: Any) -> Record:
        """Run the model on an example, to see its layers; nothing of it stays.

        Args:
            x: the model's input.

        Returns:
            The record, up to the loss if the model computes that from its inputs.
        """
        wanted = Pass(repeats=not self.cutting.derivatives, labelled=self._knows_loss(x))
        return unseen(self.model, lambda: self.run(x, None, wanted, Peers()), self._beside)

    def _knows_loss(self, x: Any) -> bool:
        """Try whether the loss needs no labels beside the inputs."""
        try:
            with without_hooks(self.model, before=True):
                self.plan(x)
        except Exception:  # whatever the user's loss raises for labels that are None
            return False
        return True

    def run(self, x: Any, y: Any, wanted: Pass, peers: Peers) -> Record:
        """Run the model by its plan, which is made, or made anew, where it has none that fits.

        Args:
            x: the model's input.
            y: labels, to see what the loss reaches when a plan is made.
            wanted: what is wanted of the pass.
            peers: the processes that share samples.

        Returns:
            The record.

        Raises:
            ValueError: the model makes other calls every time.
        """
        x = tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, x)
        batch, own = peers.batch(len(next(tensors_in(x)))), peers.own(len(self.layers))
        x = peers.receive_input(x)
        if own.start > 0 or wanted.from_input:
            x = x.detach().requires_grad_()
        modules = dict(self.model.named_modules())
        for name, module in modules.items():
            if module._backward_hooks or module._backward_pre_hooks:
                raise ValueError(
                    f"{f'module {name}' if name else 'the model'} has a backward hook, which would be called with the"
                    " changes of target propagation; remove it, or register it on parameters"
                )
        parameters = named_parameters(modules if self.root is self.model else dict(self.root.named_modules()))
        modes = tuple(module.training for module in modules.values())
        key = (wanted.labelled, wanted.from_input, modes, tuple(p.requires_grad for p in parameters.values()))
        for attempt in range(_TRIES):
            plan = self._plans.get(key)
            if plan is None or not all(t.requires_grad for t in plan.beside.values()):
                # hooks that make torch calls have to be seen
                plan = self._plans[key] = self.plan(x, y, labelled=wanted.labelled, silent=attempt == 0)
            closed = {name: modules[name] for name in plan.closed}
            trained = {**parameters, **plan.beside}
            connected = wanted.connected and not plan.reached_twice
            runner = Runner(plan, wanted.mirror, trained, closed, repeats=wanted.repeats, connected=connected)
            before = ForwardState({*modules.values(), *self._beside})
            try:
                value = self._run(plan, runner, x, y, wanted.labelled)
                break
            except OtherPathError:
                before.restore()
                del self._plans[key]
        else:
            raise ValueError(
                "the model takes another path at every call, with the same input and the same random numbers"
            )
        *layers, rest = collect(plan, runner, trained, next(tensors_in(x)), self.root)
        return Record(
            tuple(layers),
            peers.send_output(rest.x),
            batch,
            from_first=own.start == 0,
            loss=None if value is None else differentiate(rest, value, runner.leaves() | set(trained.values())),
            derived=tuple(runner.derived.values()),
            rest=rest.maps,
            connected=connected,
        )

    def _run(self, plan: Plan, runner: Runner, x: Any, y: Any, labelled: bool) -> Tensor | None:
        """Run the model, and its loss where that is a part of the plan."""
        output = runner.run(lambda: call(self.model, x), ends=plan.plain)
        if plan.plain:
            return None
        return runner.run(lambda: evaluate_loss(self.loss, output, y) if labelled else None, ends=True)


def record_layers(model: Model, x: Tensor, cut: Cut = "post-activation") -> Record:
    """Run a model once into a record of its layers, all of which can be repeated, the first as well.

    Args:
        model: the model.
        x: its input.
        cut: where layers begin and end.

    Returns:
        The record.

    >>> import torch
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    >>> [layer.name for layer in record_layers(net, torch.ones(5, 4)).layers]
    ['1', '3']
    """
    return Network(model, Cutting(cut)).run(x, None, Pass(from_input=True), Peers())


def _nothing(output: Any, y: Any) -> Any:
    raise ValueError("this network was given no loss")
