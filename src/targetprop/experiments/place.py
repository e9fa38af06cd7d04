"""Where within its epoch a run stands, so that it can be left and entered again between any two steps."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from targetprop.experiments.data.augment import Variation
from targetprop.ranks import Ranks


@dataclass
class Place:
    """What an epoch that has begun needs beside the session, to go on as if nothing had happened.

    Attributes:
        order: state of the generator of the data's order when the epoch began, so that its draws can be repeated.
        totals: sums of loss and right answers over the samples so far, but for those of skipped steps. Of several
            ranks, each has the loss of all samples, and its own right answers.
        counted: how many samples these are.
        skipped: steps that were skipped.
        batches: batches done.
        variation: state of the augmentation's random numbers after them; None where it has none.
    """

    order: Tensor
    totals: Tensor
    counted: int = 0
    skipped: int = 0
    batches: int = 0
    variation: Tensor | None = None

    def enter(self, augment: Variation) -> None:
        """Bring the augmentation to this place."""
        generator = augment.generator
        # Generators of different kinds of device have states of different size; a fresh one then goes on.
        if self.variation is not None and generator is not None and self.variation.shape == generator.get_state().shape:
            generator.set_state(self.variation)

    def count(self, loss: Tensor, right: Tensor, samples: int) -> None:
        """Add a batch to the sums."""
        self.totals += torch.stack([loss.double() * samples, right.double()])
        self.counted += samples

    def gather(self, ranks: Ranks) -> None:
        """Give rank 0 the right answers of all ranks, so that it can save the place for any number of them."""
        ranks.sum_([self.totals[1:]])
        self._leave_to_first(ranks)

    def _leave_to_first(self, ranks: Ranks) -> None:
        if ranks.rank:
            self.totals[1] = 0.0

    def advance(self, augment: Variation) -> None:
        """Leave a batch behind."""
        self.batches += 1
        self.variation = None if augment.generator is None else augment.generator.get_state()

    def state(self) -> dict[str, Any]:
        """Collect it for a checkpoint, without the order's state, which the session keeps."""
        return {name: value for name, value in vars(self).items() if name != "order"}


def restore_place(state: dict[str, Any], order: Tensor, device: torch.device, ranks: Ranks) -> Place:
    """Stand where a checkpoint was made."""
    place = Place(order, **{**state, "totals": state["totals"].to(device)})
    place._leave_to_first(ranks)
    return place


def begin_epoch(order: torch.Generator, device: torch.device) -> Place:
    """Stand at the beginning of an epoch."""
    return Place(order.get_state(), torch.zeros(2, dtype=torch.float64, device=device))
