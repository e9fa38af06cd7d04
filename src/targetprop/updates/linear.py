"""What updates with a closed form for linear maps share."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from targetprop.layers import Layer, LayerRecord, MapUse, Network, Record, Wanted
from targetprop.precision import at_least_float32, no_autocast
from targetprop.settings import check_ranges
from targetprop.updates.asked import Common, Regression
from targetprop.updates.base import Update, state_key
from targetprop.updates.local_gradients import LayerChange, LocalGradients
from targetprop.updates.one_use import OneUse, is_solved
from targetprop.updates.several_uses import SeveralUses

_ELEMENTWISE = {
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus", "tanh", "sigmoid",
    "hardtanh", "hardswish", "hardsigmoid", "softsign", "logsigmoid", "tanhshrink", "softshrink", "hardshrink", "prelu",
    "rrelu", "threshold", "dropout", "alpha_dropout", "flatten", "view", "reshape", "unflatten", "unsqueeze", "squeeze",
    "contiguous",
}  # fmt: skip
Pullback = Literal["inverse", "transpose"]


@dataclass(frozen=True)
class LinearUpdate(Update):
    r"""An update with a closed form for linear maps, ``z = W a + b``; gradients for the rest.

    Solved for is every map whose weight is a parameter that its layer uses once, and by updates with a state for each
    map one that is used several times, with all its uses together: products, and convolutions of one group by their
    patches. What follows a map in its layer is linearised: ``Δz = J_σᵀ Δ`` ("transpose") or, for elementwise functions,
    ``Δz = σ' Δ / (σ'² + μ)`` ("inverse").

    Attributes:
        pullback: how ``Δ_l`` is carried to the map's own output.
        pullback_damping: ``μ ≥ 0`` of the inverse.
    """

    pullback: Pullback = "inverse"
    pullback_damping: float = 1e-2

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        check_ranges(self, "update ", pullback_damping=(self.pullback_damping >= 0, "≥ 0"))

    def build(self, network: Network, example: Record) -> nn.ModuleDict:
        """Check that the layers can be pulled back; see `Update.build`.

        Args:
            network: the layers.
            example: a forward pass on a few samples.

        Returns:
            State by map.

        Raises:
            ValueError: the inverse pull-back meets what is not elementwise.
        """
        for layer in network.layers if self.pullback == "inverse" else ():
            other = not_elementwise(layer)
            if other is not None:
                raise ValueError(
                    f"layer {layer.name}: pullback 'inverse' needs elementwise functions after its map, and"
                    f" {other} is not; set the update's pullback to 'transpose', or cut='pre-activation'"
                )
        return nn.ModuleDict()

    def gradients(self, layers: Iterable[LayerChange], common: Common, state: nn.ModuleDict) -> LocalGradients:
        """Solve for the linear maps of each layer, from the top down; see `Update.gradients`."""
        found, left, keys = LocalGradients(), LocalGradients(), {}
        several, lowest = dict[str, list[OneUse]](), dict[str, str]()
        for change in layers:
            layer, uses = change.layer, change.layer.maps
            solved, rest = self.split(layer, state)
            drawn: Sequence[Tensor | None] = [None] * len(uses)
            if change.drawn is not None and any(solved):
                drawn = (change.drawn.pulled or layer.pull(change.drawn.delta, maps=True, keep_graph=True)).maps
            asked, gradients = self._pull(change, rest)
            left.note(layer.name, rest, gradients)
            keys |= {p: rest_key(layer, p) for p in rest}  # what several layers have is the lowest one's
            for use, yes, dz, s in reversed(list(zip(uses, solved, asked, drawn, strict=True))):
                if not yes or dz is None:
                    continue
                one = OneUse(use, at_least_float32(dz), common, None if s is None else at_least_float32(s))
                if use.times > 1 and self.remembers:
                    several.setdefault(one.name, []).append(one)
                    lowest[one.name] = layer.name
                else:
                    self._note(found, layer.name, one, use, state)
        for name, parts in several.items():
            self._note(found, lowest[name], SeveralUses(parts[::-1], common), parts[0].use, state)
        for p, asked_of_all in left.values.items():
            found.note(left.names[p], [p], [self.step_rest(keys[p], asked_of_all, common, state)])
        return found

    @property
    def straight(self) -> bool:
        """See `Update.straight`: what is no transpose is not read off a backward pass."""
        return self.pullback == "transpose"

    def wants(self, layer: LayerRecord, state: nn.ModuleDict) -> Wanted:
        """Want what is asked of all maps, and the gradients of what is not solved for; see `Update.wants`."""
        return Wanted(self.split(layer, state)[1], maps=True)

    def split(self, layer: LayerRecord, state: nn.ModuleDict) -> tuple[list[bool], list[Tensor]]:
        """Say which maps of a layer are solved for, and list the parameters that then are left.

        Args:
            layer: the layer.
            state: what `build` returned.

        Returns:
            Whether each map is, and the other parameters.
        """
        solved = [self.solves(use, layer.maps, state) for use in layer.maps]
        own = {id(p) for use, yes in zip(layer.maps, solved, strict=True) if yes for p in (use.weight, use.bias)}
        return solved, [p for p in layer.parameters if id(p) not in own]

    def step_rest(self, key: str, asked: Tensor, common: Common, state: Any) -> Tensor:
        """Find the gradient of a parameter that is not solved for: the plain one, unless an update says otherwise.

        Args:
            key: under which the update's state may have something of it.
            asked: the ascent direction that the targets ask for, a sum over samples and layers, shape of the parameter.
            common: what holds for all layers.
            state: what `build` returned.

        Returns:
            This process' part of the gradient.
        """
        return asked * (-1 / common.scale)

    def solves(self, use: MapUse, uses: Sequence[MapUse], state: nn.ModuleDict) -> bool:
        """Say whether a map of a layer is solved for, and not stepped.

        Args:
            use: the use of its weight.
            uses: all uses of weights in the layer.
            state: what `build` returned.

        Returns:
            Whether it is a parameter that the layer uses once, on rows of one input.
        """
        return is_solved(use) and sum(other.weight is use.weight for other in uses) == 1

    def _note(self, found: LocalGradients, layer: str, asked: Regression, use: MapUse, state: nn.ModuleDict) -> None:
        with no_autocast(use.weight):
            change = self.solve(asked, state)
        if use.bias is not None:
            found.note(layer, [use.bias], [_through_hooks(use.bias, change[:, -1].neg().to(use.bias.dtype))])
            change = change[:, :-1]
        change = -change  # in memory of its own, without gaps
        change = change.T if use.site.kind == "matmul" else change.reshape(use.weight.shape)
        found.note(layer, [use.weight], [_through_hooks(use.weight, change.to(use.weight.dtype))])

    def _pull(
        self, change: LayerChange, rest: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
        """Find what is asked of the outputs of the maps, and the gradients of what is not solved for."""
        layer, delta = change.layer, change.delta
        if self.pullback == "transpose":
            pulled = change.pulled or layer.pull(delta, gradients=rest, maps=True)
            return pulled.maps, pulled.gradients
        slopes = layer.pull(torch.ones_like(delta), maps=True, keep_graph=True).maps
        asked = [
            delta if use.is_end(layer.y) else None if slope is None else self._inverse(slope, delta)
            for use, slope in zip(layer.maps, slopes, strict=True)
        ]
        return asked, layer.pull(delta, gradients=rest).gradients

    def _inverse(self, slope: Tensor, delta: Tensor) -> Tensor:
        raised = slope.square() + self.pullback_damping
        return slope * delta.reshape(slope.shape) / torch.where(raised == 0, torch.ones_like(raised), raised)

    @abstractmethod
    def solve(self, asked: Regression, state: nn.ModuleDict) -> Tensor:
        """Find the change of the map's parameters.

        Args:
            asked: the regression.
            state: what `build` returned.

        Returns:
            This process' part of ``ΔW`` divided by ``β``, with the bias as the last column, shape ``(k, d)``; the parts
            of all processes will be summed.
        """


def rest_key(layer: LayerRecord, p: Tensor) -> str:
    """Name a parameter of a layer, or a value made of some, by its place among them."""
    place = next(place for place, own in enumerate(layer.parameters) if own is p)
    return f"{state_key(layer.name)}|{place}"


def _through_hooks(p: Tensor, gradient: Tensor) -> Tensor:
    """Call the hooks that autograd calls with a gradient before it is added to ``.grad``."""
    for hook in list((p._backward_hooks or {}).values()):
        changed = hook(gradient)
        gradient = gradient if changed is None else changed
    return gradient


def not_elementwise(layer: Layer) -> str | None:
    """Name what follows the one linear map of a layer and does not act on each value alone; None if all does."""
    calls = [call for call in layer.segment.calls if any(v.data for v in call.outputs)]
    maps = [place for place, call in enumerate(calls) if call.sites]
    after = calls[maps[0] + 1 :] if maps else []
    return next((call.name for call in after if call.name.rstrip("_") not in _ELEMENTWISE), None)
