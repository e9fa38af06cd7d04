"""What an update is."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from targetprop.belief import Belief
from targetprop.layers import LayerRecord, Network, Record, Wanted
from targetprop.settings import check_types
from targetprop.updates.asked import Common
from targetprop.updates.local_gradients import LayerChange, LocalGradients


@dataclass(frozen=True)
class Update(ABC):
    """Settings of a local update: make ``f_l(h_{l-1}; θ_l)`` move towards ``h_l + Δ_l`` with ``h_{l-1}`` held fixed."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Check the settings, by a ``ValueError``."""
        check_types(self, "update ")

    draws: ClassVar[bool] = False  # whether it wants to know what labels drawn from the network's belief ask for
    by_maps: ClassVar[bool] = False  # whether it reads what maps inside of torch's recurrent layers are asked

    @property
    def remembers(self) -> bool:
        """Whether `gradients` changes the update's state, so that the changes have to be finite before."""
        return False

    @property
    def straight(self) -> bool:
        """Whether all that it reads of a layer comes out of backward passes: then one may serve all layers."""
        return False

    def wants(self, layer: LayerRecord, state: nn.ModuleDict) -> Wanted:
        """Say what it reads of the backward pass of a layer.

        Args:
            layer: the layer.
            state: what `build` returned.

        Returns:
            What is wanted.
        """
        return Wanted()

    def seed(self, delta: Tensor, scale: float) -> Tensor:
        """Scale a change that is to be pulled back.

        Args:
            delta: ``Δ_l``.
            scale: ``β n``.

        Returns:
            The change whose backward pass it reads, shape of ``Δ_l``.
        """
        return delta

    def observes(self, state: nn.ModuleDict) -> bool:
        """Say whether labels are to be drawn in this step.

        Args:
            state: what `build` returned.

        Returns:
            Whether they are.
        """
        return False

    def moved(self, name: str, count: int, generator: torch.Generator, state: nn.ModuleDict) -> Tensor | None:
        """Give directions of a map's inputs that its last changes were along, for decoders that are to follow.

        Args:
            name: the map.
            count: how many directions.
            generator: source of randomness.
            state: what `build` returned.

        Returns:
            Shape ``(count, d)``, of any length; None from an update that does not remember them.
        """
        return None

    def build(self, network: Network, example: Record) -> nn.ModuleDict:
        """Make the update's state.

        Args:
            network: the layers.
            example: a forward pass on a few samples.

        Returns:
            State by layer, to be kept by the engine.
        """
        return nn.ModuleDict()

    def belief(self, state: nn.ModuleDict) -> Belief | None:
        """Give what an earlier step found of the network's belief.

        Args:
            state: what `build` returned.

        Returns:
            The distribution; None if no step has found it.
        """
        return None

    @abstractmethod
    def gradients(self, layers: Iterable[LayerChange], common: Common, state: nn.ModuleDict) -> LocalGradients:
        """Compute the gradient of every ``θ_l``; each layer's graph is used up.

        Args:
            layers: what is known of each layer, from the top down, and only once.
            common: what holds for all of them.
            state: what `build` returned.

        Returns:
            The gradients.
        """


def state_key(name: str) -> str:
    """Turn a layer's name into one that a module dictionary takes."""
    return name.replace(".", "/")
