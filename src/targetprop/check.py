"""What the library does with a model, layer by layer, or why it refuses it.

>>> import torch, targetprop as tp
>>> from torch import nn
>>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
>>> print(check(net, torch.zeros(2, 4)))
layer  modules  in  out  inverted by  decoder parameters  local
0      linear   4   8    none needed  0                   yes
2      linear   8   3    mirrored     24                  yes
method iterated, cut post-activation: supported
>>> print(check(nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True)), torch.zeros(2, 4), "dtp").refusal)
layer 0: ReLU(inplace=True) would overwrite the activations that targets are measured against; set inplace=False
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.decoders import LayerBank
from targetprop.engine import TargetPropagation
from targetprop.inversion import Iteration, Krylov
from targetprop.layers import LayerRecord, Network
from targetprop.layers.chain import Cut, Model
from targetprop.layers.forward_pass import check_repeatable, evaluating, run_forward
from targetprop.layers.sites import tensors_in
from targetprop.methods import Method
from targetprop.methods import method as find_method

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
        local: whether its inversion reads no derivative of the forward weights.
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


def check(model: Model, example_input: Any, method: str | Method = "iterated", cut: Cut | None = None) -> Check:
    """Say what a method does with a model, without training anything.

    Args:
        model: what `TargetPropagation` takes.
        example_input: an input of shape ``(n, …)``, a tuple of inputs or a dictionary; its values do not matter.
        method: a name from `METHODS` or a `Method`.
        cut: where layers begin and end, if not as the method has it.

    Returns:
        The layers and how each is inverted, or the refusal.
    """
    chosen = find_method(method) if isinstance(method, str) else method
    chosen = chosen if cut is None else replace(chosen, cut=cut)
    try:
        loss = _any_loss if chosen.decoder.mirrors else nn.MSELoss()
        engine = TargetPropagation(model, loss, example_input=example_input, method=chosen, seed=0)
        layers = _look(engine, example_input)
    except (ValueError, TypeError) as error:
        return Check(chosen.name, chosen.cut, (), str(error))
    return Check(chosen.name, chosen.cut, layers, None)


def _look(engine: TargetPropagation, x: Any) -> tuple[LayerCheck, ...]:
    if not isinstance(engine, TargetPropagation):  # the baseline has no layers
        return ()
    if isinstance(engine.chain, Network):
        return _look_at_step(engine, x)
    for layer in engine.chain.layers:
        for module in layer.modules:
            check_repeatable(layer, module)
    with evaluating(engine.chain), torch.no_grad():
        record = run_forward(engine.chain, x[:2])
    kinds, rule = engine.bank.kinds(), engine.method.inversion
    rows = []
    for index, layer in enumerate(record.layers):
        kind = kinds.get(layer.name, "none needed" if index == 0 else f"{rule.name}: derivative of the layer")
        local = index == 0 or not ("linearised" in kind or "derivative" in kind)
        if kind in ("identity", "fixed") and isinstance(rule, Iteration | Krylov):
            kind = f"{kind}, iterated"
        bank = engine.bank
        count = bank.count(layer.name) if index and isinstance(bank, LayerBank) and kinds else 0
        rows.append(_check_of(layer, kind, count, local))
    return tuple(rows)


def _look_at_step(engine: TargetPropagation, x: Any) -> tuple[LayerCheck, ...]:
    """Take a whole step, and leave nothing of it."""
    assert isinstance(engine.chain, Network)
    gradients = [(p, p.grad) for p in engine.chain.model.parameters()]
    try:
        with engine.chain.undone():
            record = engine.record(x)
            engine.backward(x, None)
    finally:
        for p, gradient in gradients:
            p.grad = gradient
    kinds, seen, rows = engine.chain.kinds(), set(), []
    for layer in record.layers:
        mirrors = {use.site.key: use.base.numel() for use in layer.maps if use.site.needed} if rows else {}
        count = sum(size for key, size in mirrors.items() if key not in seen)
        seen |= mirrors.keys()
        rows.append(_check_of(layer, kinds.get(layer.name, "none needed"), count, local=True))
    return tuple(rows)


def _any_loss(output: Any, y: Any) -> Tensor:
    """Stand for the user's loss: the model's own if it computes one, else the mean square of all that it returns."""
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    values = [t for t in tensors_in(output) if t.requires_grad]
    if not values:
        raise ValueError("the model has no trainable parameter; call requires_grad_(True) on those to train")
    return torch.stack([t.float().square().mean() for t in values]).sum()


def _check_of(layer: LayerRecord, kind: str, count: int, local: bool) -> LayerCheck:
    shapes = tuple(layer.x.shape[1:]), tuple(layer.h.shape[1:])
    return LayerCheck(layer.name, tuple(layer.layer.kinds()), *shapes, kind, count, local)


def _row(layer: LayerCheck) -> tuple[str, ...]:
    shapes = ("×".join(map(str, shape)) or "1" for shape in (layer.input_shape, layer.output_shape))
    local = "yes" if layer.local else "no: reads the forward weights"
    return (layer.name, " → ".join(layer.modules), *shapes, layer.inverse, str(layer.decoder_parameters), local)
