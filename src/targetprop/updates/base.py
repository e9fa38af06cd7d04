"""What an update is, and the parts that updates of linear maps share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from targetprop.chain import Chain, Layer
from targetprop.decoders import ELEMENTWISE
from targetprop.forward import LayerRecord
from targetprop.settings import check_ranges, check_types
from targetprop.share import Share

Pullback = Literal["inverse", "transpose"]


@dataclass(frozen=True)
class Update(ABC):
    """Settings of a local update: make ``f_l(h_{l-1}; θ_l)`` move towards ``h_l + Δ_l`` with ``h_{l-1}`` held fixed."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Check the settings, by a ``ValueError``."""
        check_types(self, "update ")

    @property
    def needs_inner(self) -> bool:
        """Whether the update looks at the modules inside a layer."""
        return False

    def build(self, chain: Chain) -> nn.ModuleDict:
        """Make the update's state.

        Args:
            chain: the layers.

        Returns:
            State by layer, to be kept by the engine.
        """
        return nn.ModuleDict()

    @abstractmethod
    def apply(self, layer: LayerRecord, delta: Tensor, scale: float, state: nn.ModuleDict) -> None:
        """Accumulate into ``.grad`` of one ``θ_l``.

        Args:
            layer: the layer's forward pass, with its graph.
            delta: ``Δ_l``, shape of ``h_l``.
            scale: ``β n``: what makes the result a mean over the batch, independent of ``β`` to first order.
            state: what `build` returned.
        """


@dataclass(frozen=True)
class LinearUpdate(Update):
    r"""An update with a closed form for the one ``nn.Linear`` of a layer, ``z = W a + b``; gradients for the rest.

    What follows the map in its layer is linearised: ``Δz = J_σᵀ Δ`` ("transpose") or, for elementwise functions,
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

    @property
    def needs_inner(self) -> bool:
        """Whether the update looks at the modules inside a layer: it does."""
        return True

    def build(self, chain: Chain) -> nn.ModuleDict:
        """Check that the layers can be pulled back; see `Update.build`.

        Args:
            chain: the layers.

        Returns:
            State by layer.

        Raises:
            ValueError: the inverse pull-back meets a module that is not elementwise.
        """
        for layer in chain.layers:
            place = linear_place(layer)
            for module in () if place is None or self.pullback == "transpose" else layer.modules[place + 1 :]:
                if not isinstance(module, ELEMENTWISE):
                    raise ValueError(
                        f"layer {layer.name}: pullback 'inverse' needs elementwise modules after the Linear, and"
                        f" {type(module).__name__} is not; set the update's pullback to 'transpose', or"
                        " cut='pre-activation'"
                    )
        return nn.ModuleDict()

    def apply(self, layer: LayerRecord, delta: Tensor, scale: float, state: nn.ModuleDict) -> None:
        """Solve for the linear map of the layer; see `Update.apply`."""
        place = linear_place(layer.layer)
        if place is None:
            gradient(layer, delta, scale, list(layer.layer.parameters()))
            return
        linear = layer.layer.modules[place]
        assert isinstance(linear, nn.Linear)
        own = {id(p) for p in linear.parameters()}
        gradient(layer, delta, scale, [p for p in layer.layer.parameters() if id(p) not in own], keep_graph=True)
        dz = self._pull(layer, delta, place).flatten(0, -2)
        a = (layer.x if place == 0 else layer.inner[place - 1].detach()).flatten(0, -2)
        if linear.bias is not None:
            a = torch.cat([a, torch.ones_like(a[:, :1])], dim=1)
        positions = layer.inner[place].shape[1:-1].numel()
        rows = layer.share.times(positions)
        change = self.solve(a, dz, scale * positions, state, layer.layer.name, rows)
        accumulate(linear.weight, -change[:, : linear.in_features])
        if linear.bias is not None:
            accumulate(linear.bias, -change[:, -1])

    def _pull(self, layer: LayerRecord, delta: Tensor, place: int) -> Tensor:
        z = layer.inner[place]
        if place == len(layer.inner) - 1 or not z.requires_grad:
            return delta
        if self.pullback == "transpose":
            return torch.autograd.grad(layer.y, z, delta)[0]
        slope, ordered = torch.autograd.grad(layer.y, z, torch.ones_like(delta))[0], delta.reshape(z.shape)
        raised = slope.square() + self.pullback_damping
        return slope * ordered / torch.where(raised == 0, torch.ones_like(raised), raised)

    @abstractmethod
    def solve(self, a: Tensor, dz: Tensor, scale: float, state: nn.ModuleDict, name: str, rows: Share) -> Tensor:
        """Find the change of the map's parameters.

        Args:
            a: inputs with a constant 1 for the bias, if there is one, a row per sample and position, shape ``(r, d)``.
            dz: changes wanted of the outputs, shape ``(r, k)``.
            scale: ``β n`` times the number of positions.
            state: what `build` returned.
            name: the layer's name.
            rows: which rows of the batch these are.

        Returns:
            This rank's part of ``ΔW`` divided by ``β``, with the bias as the last column, shape ``(k, d)``; the parts
            of all ranks will be summed.
        """


def linear_place(layer: Layer) -> int | None:
    """Find the one trainable ``nn.Linear`` of a layer.

    Args:
        layer: the layer.

    Returns:
        Its place among the modules, or None if there is none, or more than one.
    """
    places = [i for i, module in enumerate(layer.modules) if isinstance(module, nn.Linear)]
    if len(places) != 1 or not all(p.requires_grad for p in layer.modules[places[0]].parameters()):
        return None
    return places[0]


def gradient(
    layer: LayerRecord, delta: Tensor, scale: float, parameters: list[nn.Parameter], *, keep_graph: bool = False
) -> None:
    """Accumulate the gradient of ``½‖f(h; θ) − ĥ‖² / scale``, that is ``−J_θᵀ Δ / scale``.

    Args:
        layer: the layer's record, with its graph.
        delta: ``Δ_l``.
        scale: ``β n``.
        parameters: the parameters to accumulate into; nothing happens if there are none.
        keep_graph: whether the graph is used again.
    """
    if parameters and layer.y.requires_grad:
        torch.autograd.backward(layer.y, delta * (-1 / scale), inputs=parameters, retain_graph=keep_graph)


def accumulate(parameter: Tensor, gradient: Tensor) -> None:
    """Add to a parameter's ``.grad``.

    Args:
        parameter: the parameter.
        gradient: what to add.
    """
    if parameter.grad is None:
        parameter.grad = gradient.to(parameter.dtype).clone(memory_format=torch.contiguous_format)
    else:
        parameter.grad.add_(gradient)
