"""What `kronecker` remembers: both sides of every map, and what holds for the network."""

import torch
from torch import Tensor, nn

from targetprop.belief import KINDS, Belief
from targetprop.updates.side import Side


class Sides(nn.Module):
    """What is remembered of one map.

    Args:
        inputs: the factor of the inputs.
        outputs: the factor of the outputs.
        top: whether those are the network's.
    """

    momentum: Tensor
    left: Tensor
    steps: Tensor

    def __init__(self, inputs: Side, outputs: Side, *, top: bool) -> None:
        """Start without observations."""
        super().__init__()
        self.inputs, self.outputs, self.top = inputs, outputs, top
        self.register_buffer("momentum", torch.zeros(len(outputs.average), len(inputs.average)))
        self.register_buffer("left", torch.zeros(2))  # e and D
        self.register_buffer("steps", torch.zeros((), dtype=torch.long, device="cpu"))

    def solve(self, product: Tensor) -> Tensor:
        """Apply both factors, ``(G + μ_G I)⁻¹ M (A + μ I)⁻¹``, to a matrix of shape ``(k, d)``."""
        return self.outputs.solve(self.inputs.solve(product).T).T


class Whole(nn.Module):
    """What is remembered of the network: steps, and its belief; alike in processes that have different layers."""

    steps: Tensor
    kind: Tensor
    scale: Tensor

    def __init__(self, maps: int) -> None:
        """Start with no step and no belief, of a network with so many maps that are solved for."""
        super().__init__()
        self.maps = maps
        for name, dtype in (("steps", torch.long), ("kind", torch.long), ("scale", torch.double)):
            self.register_buffer(name, torch.zeros((), dtype=dtype, device="cpu"))

    def belief(self) -> Belief | None:
        """Give the belief, or nothing in the first step."""
        return Belief(*KINDS[int(self.kind)], float(self.scale)) if float(self.scale) else None

    def keep(self, belief: Belief) -> None:
        """Keep a belief."""
        self.kind.fill_(KINDS.index((belief.kind, belief.dim)))
        self.scale.fill_(belief.scale)
