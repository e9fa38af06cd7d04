"""Inverses that somebody has altered: how a claim is tried with an error of your own, and how tests make it fail."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from targetprop.chain import Chain
from targetprop.decoders import Bank, Inverse, Objective
from targetprop.forward import Record
from targetprop.guard import Guard

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

    def build(
        self, chain: Chain, example: Record, inner: list[tuple[Tensor, ...]], custom: Mapping[str, nn.Module]
    ) -> Bank:
        """Build the objective's decoders; see `Objective.build`."""
        return _AlteredBank(self.objective.build(chain, example, inner, custom), self.alter)

    def train(
        self,
        bank: Bank,
        record: Record,
        optimizer: torch.optim.Optimizer | None,
        generator: torch.Generator,
        guard: Guard,
    ) -> Tensor | None:
        """Train them unaltered; see `Objective.train`."""
        assert isinstance(bank, _AlteredBank)
        return self.objective.train(bank.bank, record, optimizer, generator, guard)

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
        """Make the objective's optimiser; see `Objective.make_optimizer`."""
        return self.objective.make_optimizer(parameters)


class _AlteredBank(Bank):
    def __init__(self, bank: Bank, alter: Alter) -> None:
        super().__init__()
        self.bank, self.alter = bank, alter

    def inverse(self, index: int, record: Record) -> Inverse:
        return self.alter(self.bank.inverse(index, record))

    def composite(self, index: int, record: Record) -> Inverse:
        return self.alter(self.bank.composite(index, record))
