"""How far an epoch has come, so that it can be left and entered again between any two steps."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from targetprop.experiments.data.augment import Variation


@dataclass
class EpochProgress:
    """What an epoch that has begun needs beside the rest of the state, to go on as if nothing had happened."""

    order: Tensor  # state of the data's order when the epoch began, so that its draws can be repeated
    loss: Tensor  # sum over the samples so far of all ranks, but for those of skipped steps
    right: Tensor  # right answers among them, of this rank alone
    counted: int = 0  # how many samples these are
    skipped: int = 0  # steps
    batches: int = 0  # batches done
    variation: Tensor | None = None  # state of the augmentation's random numbers after them

    def enter(self, augment: Variation) -> None:
        """Bring the augmentation as far as this."""
        generator = augment.generator
        # Generators of different kinds of device have states of different size; a fresh one then goes on.
        if self.variation is not None and generator is not None and self.variation.shape == generator.get_state().shape:
            generator.set_state(self.variation)

    def count(self, loss: Tensor, right: Tensor, samples: int) -> None:
        """Add a batch to the sums."""
        self.loss += loss.double() * samples
        self.right += right
        self.counted += samples

    def advance(self, augment: Variation) -> None:
        """Leave a batch behind."""
        self.batches += 1
        self.variation = None if augment.generator is None else augment.generator.get_state()

    def state_dict(self, right: float) -> dict[str, Any]:
        """Collect it for a checkpoint, with the right answers of all ranks, but without the order's state."""
        return {name: value for name, value in vars(self).items() if name != "order"} | {"right": right}


def begin_epoch(order: torch.Generator, device: torch.device) -> EpochProgress:
    """Stand at the beginning of an epoch."""
    loss, right = torch.zeros(2, dtype=torch.float64, device=device)
    return EpochProgress(order.get_state(), loss, right)


def restore_epoch(state: dict[str, Any], order: Tensor, device: torch.device, *, first: bool) -> EpochProgress:
    """Stand where a checkpoint was made; the right answers so far are counted by rank 0."""
    right = torch.tensor(state["right"] if first else 0.0, dtype=torch.float64, device=device)
    return EpochProgress(order, **{**state, "loss": state["loss"].to(device), "right": right})
