"""Recording a model: it is run once, as it is written, and what it does is written on a tape.

Any Python may stand in its ``forward``; what counts is which tensors feed which calls.

>>> import torch
>>> from torch import nn
>>> model, x = nn.Sequential(nn.Linear(3, 2), nn.Tanh()), torch.ones(4, 3)
>>> tape = record([model], lambda: model(x), [x])
>>> [(call.name, call.path) for call in tape.calls]
[('linear', '0'), ('tanh', '1')]
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules import module as module_hooks

from targetprop.layers.closed import Closed
from targetprop.layers.counted import CUSTOM, CountedMode, Uses
from targetprop.layers.random_states import random_states
from targetprop.layers.sites import (
    as_autocast,
    at,
    composite_kernels,
    find_sites,
    memory,
    placed_tensors,
    tensors_in,
    told_apart,
    version,
)
from targetprop.layers.tape import LOOKUPS, Call, Tape, Value
from targetprop.layers.weights import Weights

_HOOK = "BackwardHookFunction.apply"  # torch's own
_NO_DERIVATIVE = "torch::autograd::WarnNotImplemented"  # torch's name for the backward pass of calls that have none
_CHECKPOINTING = (
    "gradient checkpointing, or another hook on saved tensors, is active; turn it off, such as by"
    " model.gradient_checkpointing_disable()"
)
_LIKE = {"empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"}


def record(
    models: Sequence[nn.Module],
    run: Callable[[], Any],
    inputs: Sequence[Tensor],
    finish: Callable[[Any], Any] | None = None,
    labels: Sequence[Tensor] = (),
    closed: Mapping[str, nn.Module] | None = None,
    *,
    by_maps: bool = False,
) -> Tape:
    """Record the torch calls of a forward pass.

    Args:
        models: whose parameters are trained, and whose modules are named, after the last that has them.
        run: runs it on the inputs.
        inputs: the tensors that stand for data.
        finish: computes the loss from what `run` returned.
        labels: the tensors that stand for labels.
        closed: modules that count as one call each, by name.
        by_maps: write recurrent layers of torch out.

    Returns:
        The tape.
    """
    recorder = Recorder(models, inputs, labels, by_maps=by_maps)
    eager = torch.compiler.set_stance("force_eager")
    closing = recorder.closing(closed or {})
    with torch.enable_grad(), recorder.following_modules(), closing, recorder.seeing_custom(), eager, recorder:
        output = run()
        tape = recorder.tape
        tape.total, tape.signature = recorder.count, recorder.signature
        result = output if finish is None else finish(output)
    tape.output = recorder.value(output) if isinstance(output, Tensor) else None
    tape.start = next((value for value in map(recorder.value, inputs) if value.trained), None)
    tape.results = [value for t in tensors_in(result) if (value := recorder.value(t)).trained]
    tape.whole, tape.closed = (recorder.count, recorder.signature), tuple(closed or ())
    return tape


class Recorder(CountedMode):
    """Sees every torch call.

    Args:
        models: whose parameters are trained, and whose modules are named, after the last that has them.
        inputs: the tensors that stand for data.
        labels: the tensors that stand for labels.
        by_maps: write recurrent layers of torch out.
    """

    def __init__(
        self, models: Sequence[nn.Module], inputs: Sequence[Tensor], labels: Sequence[Tensor], *, by_maps: bool
    ) -> None:
        """Start an empty tape."""
        super().__init__(by_maps=by_maps)
        self.tape = Tape(by_maps=by_maps)
        self._modules = {id(module): name for model in models for name, module in model.named_modules()}
        self._parameters = {id(p): name for model in models for name, p in model.named_parameters()}
        self._weights = Weights(models)
        self._path = [""]
        self._transformed = False  # whether torch.func made calls, of which nothing is known
        self._values: dict[int, Value] = {}
        self._old: set[int] = set()  # tensors written in place that go by another name since
        self._sharing: dict[int, list[Tensor]] = {}  # tensors by memory; also keeps them, so that no id is used twice
        for t in inputs:
            self._add(t, Value(t.shape, data=True, trained=t.requires_grad))
        for t in labels:
            self._add(t, Value(t.shape, data=False, trained=False, labels=True))

    def value(self, t: Tensor) -> Value:
        """Find what a tensor is at this time."""
        value = self._values.get(id(t))
        if value is None:
            if t.grad_fn is not None:
                self._refuse(
                    "torch.func works on values that cannot be followed; call modules on the whole batch, without vmap,"
                    " grad or jvp"
                    if self._transformed
                    else f"a value made by {t.grad_fn.name()} was not seen being computed; its gradients would be"
                    " incomplete; let torch calls in Python make it, not scripted or compiled code"
                )
            value = Value(t.shape, data=False, trained=t.requires_grad, parameter=self._name(t))
            self._add(t, value)
        elif id(t) in self._old:
            value.fixed = False
        elif t.requires_grad and not value.trained and value.made is not None:
            self._adopt(value)
        return value

    def _name(self, t: Tensor) -> str | None:
        """Name a parameter, or another tensor that is trained."""
        if t.requires_grad and id(t) not in self._parameters:
            name = f"beside@{len(self.tape.beside) + 1}"
            self.tape.beside[name] = t
            self._parameters[id(t)] = name
            self._weights.add(name, t)
        return self._parameters.get(id(t))

    def _adopt(self, value: Value) -> None:
        """Let what an autograd function of the user's did inside count as differentiable: its result is."""
        todo = [value]
        while todo:
            value = todo.pop()
            value.trained, value.fixed, value.adopted = True, False, True
            maker = next((c for c in reversed(self.tape.calls) if any(v is value for v in c.outputs)), None)
            todo += [v for v in maker.inputs if v.data and not v.trained] if maker is not None else []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a call and write down what it did."""
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        if self.opens(func, args):
            return self.run_opened(func, args, kwargs)
        index, name = self.number(func), func.__name__
        if torch._C._are_functorch_transforms_active():
            self._transformed = True
        if index < 0 or torch._C._are_functorch_transforms_active():
            return func(*args, **kwargs)
        if name.endswith(CUSTOM):
            func = self._watched(func)
        placed = list(placed_tensors((args, kwargs)))
        given = [t for _, t in placed]
        call = Call(index, name, self._path[-1], [self.value(t) for t in given], [place for place, _ in placed])
        data = name not in _LIKE and any(v.data or (v.labels and name in LOOKUPS) for v in call.inputs)
        versions, drawn = [version(t) for t in given], random_states() if data else []
        kept = [(t, t.clone()) for t, v in zip(given, call.inputs, strict=True) if data and _is_constant(t, v)]
        if isinstance(func, Closed):
            drawn, call.closed, call.opaque, call.path = func.before, True, func.opaque, func.name
            call.inputs += [self.value(p) for p in func.module.parameters()]
        if torch.is_grad_enabled() and any(v.trained for v in call.inputs):
            out = self._run(call, func, args, kwargs, given, data)
        else:
            out = func(*args, **kwargs)
        if isinstance(func, Closed):
            self.tape.ends[func.name][-1] = index
        call.random = any(not torch.equal(a, b) for a, b in zip(drawn, random_states(), strict=False))
        written = [t for t, before in zip(given, versions, strict=True) if version(t) != before]
        changed = {id(t) for t in written} | {id(t) for t, before in kept if not torch.equal(t, before)}
        call.writes = tuple(place for place, t in placed if id(t) in changed)
        return self._note(call, out, written, data)

    def _run(
        self, call: Call, func: Callable[..., Any], args: Any, kwargs: Any, given: list[Tensor], data: bool
    ) -> Any:
        """Run a call, and see which parameters it keeps for its backward pass."""
        key = partial(self._weights.key, user=self._path[-1])
        sites = find_sites(call.name, args, kwargs, self._is_weight, key) if data else ()
        if sites:
            args, kwargs = told_apart(sites, *as_autocast(args, kwargs))
        weights = {memory(at(site.weight, args, kwargs)): site for site in sites}
        beside = {memory(t) for t, v in zip(given, call.inputs, strict=False) if v.trained and not v.data}
        if call.name == "grad":
            self._refuse(
                "torch.autograd.grad inside of the forward pass would read mirrors for weights; write the derivative"
                " out, or choose the method 'backprop'"
            )
        if call.name.endswith(CUSTOM):
            self.tape.custom = True
            if beside and data:
                self._refuse(
                    f"{call.name.removesuffix(CUSTOM)} is an autograd.Function that takes parameters, which its"
                    " backward pass may read; let it take activations alone, and apply the parameters outside of it"
                )
        if not (weights or beside):
            return func(*args, **kwargs)
        if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:  # pyright: ignore
            self._refuse(_CHECKPOINTING)
        kept: set[int] = set()

        def pack(t: Tensor) -> Tensor:
            kept.add(memory(t))
            return t

        with saved_tensors_hooks(pack, lambda t: t), composite_kernels(sites):
            out = func(*args, **kwargs)
        through = any(v.data and v.trained for v in call.inputs)
        recurrent = any(site.kind == "recurrent" for site in sites)  # these keep no weight of a state without gradient
        needed, by_copy = {key: key in kept if recurrent else through for key in weights}, through and not recurrent
        call.sites = tuple(
            replace(site, needed=needed[key], copied=by_copy and key not in kept) for key, site in weights.items()
        )
        call.gains = bool(kept & (beside - weights.keys()))
        if through and recurrent and not kept & weights.keys():
            self._refuse(f"{call.name} keeps copies of its weights that no mirror can stand in for")
        return out

    def _watched(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Let a custom autograd function run, and refuse it if it applies parameters that it was not given."""
        name = func.__name__

        def run(*args: Any, **kwargs: Any) -> Any:
            with Uses(self._parameters) as uses:
                out = func(*args, **kwargs)
            given = {id(t) for t in tensors_in((args, kwargs))}
            hidden = next((self._parameters[used] for used in uses.seen if used not in given), None)
            if name == f"CheckpointFunction{CUSTOM}":
                self._refuse(_CHECKPOINTING)
            elif hidden is not None:
                self._refuse(
                    f"{name.removesuffix(CUSTOM)} is an autograd.Function that applies {hidden}, which is none of its"
                    " arguments; apply parameters outside of it"
                )
            return out

        run.__name__ = name
        return run

    def _is_weight(self, t: Tensor) -> bool:
        value = self.value(t)
        return not value.data and (value.trained or t in self._weights)

    def _note(self, call: Call, out: Any, written: list[Tensor], data: bool) -> Any:
        labels = any(v.labels for v in call.inputs) and call.name not in LOOKUPS
        if isinstance(out, Tensor) and out.requires_grad and id(out) in self._values and not written:
            with torch._C.DisableTorchFunction():
                out = out.view_as(out)  # the call had nothing to do this time, such as contiguous()
        for number, t in enumerate(tensors_in(out)):
            if id(t) not in self._values:
                value = Value(t.shape, data, t.requires_grad, call.index, number, labels)
                call.opaque |= t.grad_fn is not None and t.grad_fn.name() == _NO_DERIVATIVE
                value.real = not t.is_complex()
                value.fixed = call.name != _HOOK  # torch looks for the graph that this has made
                if t.is_nested and t.requires_grad:
                    self._refuse("nested tensors cannot be followed; pad the sequences, and mask what was padded")
                self._add(t, value)
                call.outputs.append(value)
        for t in {memory(t): t for t in reversed(written)}.values():  # views of one memory count their writes together
            out = self._write(call, t, out, data, labels)
        if call.outputs:
            self.tape.calls.append(call)
        return out

    def _write(self, call: Call, t: Tensor, out: Any, data: bool, labels: bool) -> Any:
        """Note that a call wrote into the memory of a tensor: all that share it have another value now."""
        mine = self._values[id(t)]  # what it was, though it may ask for a gradient since
        if mine.parameter:
            return out
        known = {id(other): self._values[id(other)] for other in self._sharing[memory(t)]}
        old = list({id(before): before for before in known.values() if before.made != call.index}.values())
        data, trained = data or any(v.data for v in old), t.requires_grad or any(v.trained for v in old)
        value = Value(t.shape, data, trained, call.index, 0, labels)
        after = {id(v): value if v is mine else Value(v.shape, data, trained, call.index, 0, labels) for v in old}
        for before in old:
            before.fixed = after[id(before)].fixed = False
            call.inputs.append(before)
            if before is not mine:
                call.rewritten.append((before, after[id(before)]))
        self._values |= {key: after.get(id(before), value) for key, before in known.items()}
        value.fixed = True
        call.outputs += [value, *(new for _, new in call.rewritten)]
        if out is not t or not t.requires_grad:  # the caller goes on with the old name
            value.fixed = False
            return out
        with torch._C.DisableTorchFunction():
            out = t.view_as(t)  # whoever goes on with the old name is seen by that
        self._old.update(map(id, self._sharing[memory(t)]))
        self._add(out, value)
        return out

    def _add(self, t: Tensor, value: Value) -> None:
        self._values[id(t)] = value
        self._sharing.setdefault(memory(t), []).append(t)

    def _refuse(self, problem: str) -> None:
        self.tape.problems.append(f"{self._path[-1] or 'the model'}: {problem}")

    @contextmanager
    def following_modules(self) -> Iterator[None]:
        """Follow which module is running."""

        def enter(module: nn.Module, args: Any) -> None:
            self._path.append(self._modules.get(id(module), self._path[-1]))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            made = [t for t in tensors_in(output) if t.is_floating_point()]
            given = [value for t in tensors_in(args) if (value := self._values.get(id(t))) is not None]
            led = any(value.trained and value.data for value in given)
            followed = torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active()
            if led and made and not self.inside and followed and not any(t.requires_grad for t in made):
                self.tape.opaque.append(f"{self._path[-1]}: {type(module).__name__}")
            self.tape.ends.setdefault(self._path.pop(), []).append(self.count - 1)

        handles = [
            module_hooks.register_module_forward_pre_hook(enter),
            module_hooks.register_module_forward_hook(leave, always_call=True),
        ]
        try:
            with warnings.catch_warnings():  # compiled modules run as they are written here
                warnings.filterwarnings("ignore", r"Using `torch.compile\(module\)` when there are global hooks")
                yield
        finally:
            for handle in handles:
                handle.remove()


def _is_constant(t: Tensor, value: Value) -> bool:
    """Whether a tensor may be a buffer, which some kernels write into without a word."""
    return not (value.data or value.trained or t.is_inference()) and t.layout == torch.strided
