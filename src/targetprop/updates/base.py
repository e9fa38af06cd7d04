"""What an update is, and the parts that updates of linear maps share."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from targetprop.batch import Batch
from targetprop.decoders import ELEMENTWISE
from targetprop.layers import Chain, Layer, LayerRecord
from targetprop.settings import check_ranges, check_types
from targetprop.updates.local_gradients import LocalGradients

Pullback = Literal["inverse", "transpose"]
Changes = Iterable[tuple[LayerRecord, Tensor]]


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

    @property
    def remembers(self) -> bool:
        """Whether `gradients` changes the update's state, so that the changes have to be finite before."""
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
    def gradients(self, layers: Changes, batch: Batch, scale: float, state: nn.ModuleDict) -> LocalGradients:
        """Compute the gradient of every ``θ_l``; each layer's graph is used up.

        Args:
            layers: each layer's record with its graph, and ``Δ_l``, shape of ``h_l``; from the top down, and only once.
            batch: which samples of the step these are.
            scale: ``β n``: what makes the result a mean over the batch, independent of ``β`` to first order.
            state: what `build` returned.

        Returns:
            The gradients.
        """


@dataclass(frozen=True, eq=False)
class Regression:
    """What the linear map of a layer is asked: ``W a`` to change by ``Δz``.

    Attributes:
        name: the layer's name.
        a: inputs with a constant 1 for the bias, if there is one, a row per sample and position, shape ``(r, d)``.
        dz: changes wanted of the outputs, shape ``(r, k)``.
        scale: ``β n`` times the number of positions.
        batch: which samples of the step these are.
    """

    name: str
    a: Tensor
    dz: Tensor
    scale: float
    batch: Batch


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
            index = linear_index(layer)
            for module in () if index is None or self.pullback == "transpose" else layer.modules[index + 1 :]:
                if not isinstance(module, ELEMENTWISE):
                    raise ValueError(
                        f"layer {layer.name}: pullback 'inverse' needs elementwise modules after the Linear, and"
                        f" {type(module).__name__} is not; set the update's pullback to 'transpose', or"
                        " cut='pre-activation'"
                    )
        return nn.ModuleDict()

    def gradients(self, layers: Changes, batch: Batch, scale: float, state: nn.ModuleDict) -> LocalGradients:
        """Solve for the linear map of each layer, from the top down; see `Update.gradients`."""
        found = LocalGradients()
        for layer, delta in layers:
            index, parameters = linear_index(layer.layer), list(layer.layer.parameters())
            if index is None:
                found.note(parameters, gradient(layer, delta, scale, parameters))
                continue
            linear = layer.layer.modules[index]
            assert isinstance(linear, nn.Linear)
            own = {id(p) for p in linear.parameters()}
            rest = [p for p in parameters if id(p) not in own]
            found.note(rest, gradient(layer, delta, scale, rest, keep_graph=True))
            change = self.solve(self._regression(layer, delta, index, scale, batch), state)
            found.note([linear.weight], [-change[:, : linear.in_features].to(linear.weight.dtype)])
            if linear.bias is not None:
                found.note([linear.bias], [-change[:, -1].to(linear.bias.dtype)])
        return found

    def _regression(self, layer: LayerRecord, delta: Tensor, index: int, scale: float, batch: Batch) -> Regression:
        dz = self._pull(layer, delta, index).flatten(0, -2)
        a = (layer.x if index == 0 else layer.inner[index - 1].detach()).flatten(0, -2)
        if getattr(layer.layer.modules[index], "bias", None) is not None:
            a = torch.cat([a, torch.ones_like(a[:, :1])], dim=1)
        return Regression(layer.name, a, dz, scale * layer.inner[index].shape[1:-1].numel(), batch)

    def _pull(self, layer: LayerRecord, delta: Tensor, index: int) -> Tensor:
        z = layer.inner[index]
        if index == len(layer.inner) - 1 or not z.requires_grad:
            return delta
        if self.pullback == "transpose":
            return torch.autograd.grad(layer.y, z, delta)[0]
        slope, ordered = torch.autograd.grad(layer.y, z, torch.ones_like(delta))[0], delta.reshape(z.shape)
        raised = slope.square() + self.pullback_damping
        return slope * ordered / torch.where(raised == 0, torch.ones_like(raised), raised)

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


def state_key(name: str) -> str:
    """Turn a layer's name into one that a module dictionary takes."""
    return name.replace(".", "/")


def linear_index(layer: Layer) -> int | None:
    """Find the one trainable ``nn.Linear`` among the modules of a layer; None if there is none, or more than one."""
    found = [i for i, module in enumerate(layer.modules) if isinstance(module, nn.Linear)]
    if len(found) != 1 or not all(p.requires_grad for p in layer.modules[found[0]].parameters()):
        return None
    return found[0]


def gradient(
    layer: LayerRecord, delta: Tensor, scale: float, parameters: list[nn.Parameter], *, keep_graph: bool = False
) -> Sequence[Tensor | None]:
    """Compute the gradient of ``½‖f(h; θ) − ĥ‖² / scale``, that is ``−J_θᵀ Δ / scale``."""
    if not parameters or not layer.y.requires_grad:
        return [None] * len(parameters)
    start = delta * (-1 / scale)
    return torch.autograd.grad(layer.y, parameters, start, retain_graph=keep_graph, allow_unused=True)
