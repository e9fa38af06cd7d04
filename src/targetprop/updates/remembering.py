"""Updates that remember something of every linear map that they solve for."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from targetprop.finite import check_digits
from targetprop.layers import MapUse, Network, Record
from targetprop.updates.asked import is_solved
from targetprop.updates.base import state_key
from targetprop.updates.linear import LinearUpdate


@dataclass(frozen=True)
class RememberingUpdate(LinearUpdate):
    """An update with a state for each map."""

    @property
    def remembers(self) -> bool:
        """Whether the update keeps statistics: it does."""
        return True

    def build(self, network: Network, example: Record) -> nn.ModuleDict:
        """Make a state for every map that is solved for; see `Update.build`."""
        check_digits((p for layer in network.layers for p in layer.parameters()), self.name.replace("-", " "))
        state, times = super().build(network, example), Counter(use.site.key for use in example.uses())
        for layer in example.layers:
            for use in layer.maps:
                if is_solved(use) and times[use.site.key] == 1:
                    weight, matmul = use.weight.detach(), use.site.kind == "matmul"
                    inputs = len(weight) if matmul else weight[0].numel()
                    outputs = weight.shape[1] if matmul else len(weight)
                    top = layer is example.layers[-1] and use.is_end(layer.y)
                    memory = self.memory(inputs + (use.bias is not None), outputs, weight, top=top)
                    state[state_key(use.site.key)] = memory
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
