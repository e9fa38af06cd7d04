"""Updates that remember something of every linear map that they solve for."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from targetprop.finite import check_digits
from targetprop.layers import MapUse, Network, Record
from targetprop.updates.base import state_key
from targetprop.updates.linear import LinearUpdate
from targetprop.updates.one_use import are_solved, map_shape


@dataclass(frozen=True)
class RememberingUpdate(LinearUpdate):
    """An update with a state for each map."""

    by_maps: ClassVar[bool] = True

    @property
    def remembers(self) -> bool:
        """Whether the update keeps statistics: it does."""
        return True

    def build(self, network: Network, example: Record) -> nn.ModuleDict:
        """Make a state for every map that is solved for; see `Update.build`."""
        check_digits((p for layer in network.layers for p in layer.parameters()), self.name.replace("-", " "))
        state, top, uses = super().build(network, example), example.layers[-1], dict[str, list[MapUse]]()
        for layer in example.layers:
            for use in layer.maps:
                uses.setdefault(use.site.key, []).append(use)
        for key, own in uses.items():
            if are_solved(own):
                (outputs, inputs), first = map_shape(own[0]), own[0]
                is_top = len(own) == 1 and first in top.maps and first.is_end(top.y)
                state[state_key(key)] = self.memory(inputs, outputs, first.weight.detach(), top=is_top)
        return state

    @abstractmethod
    def memory(self, inputs: int, outputs: int, like: Tensor, *, top: bool) -> nn.Module:
        """Make the state of a map.

        Args:
            inputs: ``d``, the constant of the bias included.
            outputs: ``k``.
            like: a tensor with its device and type.
            top: whether the map's output is the network's.

        Returns:
            The state.
        """

    def solves(self, use: MapUse, uses: Sequence[MapUse], state: nn.ModuleDict) -> bool:
        """Look for the map's state; see `LinearUpdate.solves`."""
        return use.weight.requires_grad and state_key(use.site.key) in state
