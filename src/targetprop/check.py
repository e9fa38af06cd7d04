"""What the library does with a model, layer by layer, or why it refuses it.

>>> import torch, targetprop as tp
>>> from torch import nn
>>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
>>> print(check(net, torch.zeros(2, 4)))
layer  modules        in  out  inverted by  decoder parameters  local
0      Linear → Tanh  4   8    none needed  0                   yes
2      Linear         8   3    mirrored     32                  yes
method iterated, cut post-activation: supported
>>> print(check(nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True)), torch.zeros(2, 4)).refusal)
layer 0: ReLU(inplace=True) would overwrite the activations that targets are measured against; set inplace=False
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from targetprop.decoders import LayerBank
from targetprop.engine import TargetPropagation
from targetprop.inversion import Iteration, Krylov
from targetprop.layers.chain import Cut, Model
from targetprop.layers.forward_pass import check_repeatable, evaluating, run_forward
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


def check(model: Model, example_input: Tensor, method: str | Method = "iterated", cut: Cut | None = None) -> Check:
    """Say what a method does with a model, without training anything.

    Args:
        model: what `TargetPropagation` takes.
        example_input: an input of shape ``(n, …)``; its values do not matter.
        method: a name from `METHODS` or a `Method`.
        cut: where layers begin and end, if not as the method has it.

    Returns:
        The layers and how each is inverted, or the refusal.
    """
    chosen = find_method(method) if isinstance(method, str) else method
    chosen = chosen if cut is None else replace(chosen, cut=cut)
    try:
        engine = TargetPropagation(model, nn.MSELoss(), example_input=example_input, method=chosen, seed=0)
        layers = _look(engine, example_input)
    except (ValueError, TypeError) as error:
        return Check(chosen.name, chosen.cut, (), str(error))
    return Check(chosen.name, chosen.cut, layers, None)


def _look(engine: TargetPropagation, x: Tensor) -> tuple[LayerCheck, ...]:
    if not isinstance(engine, TargetPropagation):  # the baseline has no layers
        return ()
    for layer in engine.chain.layers:
        for module in layer.modules:
            check_repeatable(layer, module)
    with evaluating(engine.chain), torch.no_grad():
        record = run_forward(engine.chain, x[:2])
    kinds, rule = engine.bank.kinds(), engine.method.inversion
    rows = []
    for index, layer in enumerate(record.layers):
        name = layer.name
        kind = kinds.get(name, "none needed" if index == 0 else f"{rule.name}: derivative of the layer")
        local = index == 0 or not ("linearised" in kind or "derivative" in kind)
        if kind in ("identity", "fixed") and isinstance(rule, Iteration | Krylov):
            kind = f"{kind}, iterated"
        bank = engine.bank
        count = bank.count(name) if index and isinstance(bank, LayerBank) and kinds else 0
        modules = tuple(type(module).__name__ for module in layer.layer.modules)
        rows.append(LayerCheck(name, modules, tuple(layer.x.shape[1:]), tuple(layer.h.shape[1:]), kind, count, local))
    return tuple(rows)


def _row(layer: LayerCheck) -> tuple[str, ...]:
    shapes = ("×".join(map(str, shape)) or "1" for shape in (layer.input_shape, layer.output_shape))
    local = "yes" if layer.local else "no: reads the forward weights"
    return (layer.name, " → ".join(layer.modules), *shapes, layer.inverse, str(layer.decoder_parameters), local)
