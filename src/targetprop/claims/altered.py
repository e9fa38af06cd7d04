"""Inverses that somebody has altered: how a claim is tried with an error of your own, and how tests make it fail."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from targetprop.decoders import Bank, Inverse, Objective
from targetprop.decoders.bank import Mirrors
from targetprop.decoders.objective import Generators, Moved
from targetprop.decoders.proposal import Proposal
from targetprop.layers import LayerRecord, Network, Record

Alter = Callable[[Inverse], Inverse]


def unaltered(g: Inverse) -> Inverse:
    """Return the inverse as it is."""
    return g


@dataclass(frozen=True)
class Altered(Objective):
    """An objective whose decoders are altered after they have been bound."""

    objective: Objective
    alter: Alter
    name: ClassVar[str] = "altered"

    @property
    def derivatives(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether changes go down through the derivatives of layers."""
        return self.objective.derivatives

    def build(self, network: Network, example: Record, custom: Mapping[str, nn.Module]) -> Bank:
        """Build the objective's decoders; see `Objective.build`."""
        return _AlteredBank(self.objective.build(network, example, custom), self.alter)

    def propose(
        self, bank: Bank, record: Record, optimizer: torch.optim.Optimizer | None, generators: Generators, moved: Moved
    ) -> Proposal:
        """Train them unaltered; see `Objective.propose`."""
        assert isinstance(bank, _AlteredBank)
        return self.objective.propose(bank.bank, record, optimizer, generators, moved)

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
        """Make the objective's optimiser; see `Objective.make_optimizer`."""
        return self.objective.make_optimizer(parameters)


class _AlteredBank(Bank):
    def __init__(self, bank: Bank, alter: Alter) -> None:
        super().__init__()
        self.bank, self.alter, self.names = bank, alter, bank.names

    def mirrors(self) -> Mirrors:
        return self.bank.mirrors()

    def inverse(self, layer: LayerRecord) -> Inverse:
        return self.alter(self.bank.inverse(layer))

    def composite(self, layers: Sequence[LayerRecord]) -> Inverse:
        return self.alter(self.bank.composite(layers))
