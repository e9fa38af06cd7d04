"""What the library does with a model, layer by layer, or why it refuses it.

>>> import torch, targetprop as tp
>>> from torch import nn
>>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
>>> print(check(net, torch.zeros(2, 4)))
layer  modules  in  out  inverted by  decoder parameters  local
0      linear   4   8    none needed  0                   yes
2      linear   8   3    mirrored     24                  yes
method l-drl, cut post-activation: supported
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.engine import TargetPropagation
from targetprop.inversion import Iteration, Krylov
from targetprop.layers import Cut, LayerRecord, Model, Record
from targetprop.layers.sites import tensors_in
from targetprop.layers.undone import ForwardState
from targetprop.methods import method as find_method
from targetprop.recipe import Method

_TITLES = ("layer", "modules", "in", "out", "inverted by", "decoder parameters", "local")


@dataclass(frozen=True)
class LayerCheck:
    """What becomes of one layer.

    Attributes:
        name: its name in the model.
        modules: the kinds of its modules in forward order.
        input_shape: shape of one sample of its input.
        output_shape: shape of one sample of its output.
        inverse: how it is inverted.
        decoder_parameters: how many numbers its decoder learns.
        local: whether its inversion reads no derivative of the forward weights, and learns from the layer alone.
    """

    name: str
    modules: tuple[str, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    inverse: str
    decoder_parameters: int
    local: bool


@dataclass(frozen=True)
class Check:
    """The answer of `check`; its text is a table.

    Attributes:
        method: the method's name.
        cut: where layers begin and end.
        layers: one row per layer; empty if the model is refused.
        refusal: why the model is refused and the way out; None if it is supported.
    """

    method: str
    cut: Cut
    layers: tuple[LayerCheck, ...]
    refusal: str | None

    @property
    def supported(self) -> bool:
        """Whether the method can train the model."""
        return self.refusal is None

    def __str__(self) -> str:
        """Print the table, or the refusal."""
        if self.refusal is not None:
            return f"method {self.method}, cut {self.cut}: refused\n{self.refusal}"
        rows = [_TITLES, *(_row(layer) for layer in self.layers)] if self.layers else []
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, f"method {self.method}, cut {self.cut}: supported"])


def check(
    model: Model,
    example_input: Any,
    method: str | Method = "l-drl",
    cut: Cut | None = None,
    layers: Sequence[str] | None = None,
) -> Check:
    """Say what a method does with a model, without training anything.

    Args:
        model: what `TargetPropagation` takes.
        example_input: an input of shape ``(n, …)``, a tuple of inputs or a dictionary; its values do not matter.
        method: a name from `METHODS` or a `Method`.
        cut: where layers begin and end, if not as the method has it.
        layers: names of modules, after each of which a layer ends.

    Returns:
        The layers and how each is inverted, or the refusal.
    """
    chosen = find_method(method) if isinstance(method, str) else method
    chosen = chosen if cut is None else replace(chosen, cut=cut)
    try:
        engine = TargetPropagation(
            model, _any_loss, example_input=example_input, method=chosen, layers=layers, seed=0, on_divergence="skip"
        )
        rows = _look(engine, example_input)
    except (ValueError, TypeError) as error:
        return Check(chosen.name, chosen.cut, (), str(error))
    return Check(chosen.name, chosen.cut, rows, None)


def _look(engine: TargetPropagation, x: Any) -> tuple[LayerCheck, ...]:
    """Take a whole step, leave nothing of it, and say what became of the layers, of which the baseline has none."""
    layered = isinstance(engine, TargetPropagation)
    model = engine.network.model if layered else engine.model
    with _unchanged(model):
        record = engine.record(x) if layered else None
        engine.backward(x, None if record is None else torch.zeros_like(record.output))
    return () if record is None else _rows_of(engine, record)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put gradients, buffers and random numbers back afterwards, and run no hook that would take a step meanwhile."""
    before = ForwardState(model.modules(), contents=True)
    kept = [(p, p.grad, p._post_accumulate_grad_hooks or {}) for p in model.parameters()]
    found = [dict(hooks) for _, _, hooks in kept]
    try:
        for p, _, hooks in kept:
            p.grad = None
            hooks.clear()
        yield
    finally:
        before.restore()
        for (p, gradient, hooks), old in zip(kept, found, strict=True):
            p.grad = gradient
            hooks.update(old)


def _rows_of(engine: TargetPropagation, record: Record) -> tuple[LayerCheck, ...]:
    kinds, rule, rows = engine.kinds(), engine.method.inversion, []
    for layer in record.layers:
        kind = kinds.get(layer.name, f"{rule.name}: derivative of the layer" if rows else "none needed")
        derived = "linearised" in kind or "derivative of" in kind
        local = not (derived or (bool(rows) and not engine.method.decoder.local and rule.needs_decoder))
        if kind.endswith("fixed") and isinstance(rule, Iteration | Krylov):
            kind = f"{kind}, iterated"
        count = engine.bank.count(layer.name) if rows else 0
        rows.append(_check_of(layer, kind, count, local))
    return tuple(rows)


def _any_loss(output: Any, y: Any) -> Tensor:
    """Stand for the user's loss: the model's own if it computes one, else the mean square of all that it returns."""
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    values = [t for t in tensors_in(output) if t.is_floating_point()]
    if not values:
        raise ValueError("the model returns no tensor of floating point numbers; let it return what a loss can take")
    return torch.stack([t.float().square().mean() for t in values]).sum()


def _check_of(layer: LayerRecord, kind: str, count: int, local: bool) -> LayerCheck:
    shapes = tuple(layer.x.shape[1:]), tuple(layer.h.shape[1:])
    return LayerCheck(layer.name, tuple(layer.layer.kinds()), *shapes, kind, count, local)


def _row(layer: LayerCheck) -> tuple[str, ...]:
    shapes = ("×".join(map(str, shape)) or "1" for shape in (layer.input_shape, layer.output_shape))
    derived = "linearised" in layer.inverse or "derivative of" in layer.inverse
    why = "reads the forward weights" if derived else "learns from the layers above"
    local = "yes" if layer.local else f"no: {why}"
    return (layer.name, " → ".join(layer.modules), *shapes, layer.inverse, str(layer.decoder_parameters), local)
