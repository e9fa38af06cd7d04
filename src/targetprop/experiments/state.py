"""Everything that training changes, to and from a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from targetprop import StepReport
from targetprop.experiments.distributed import Processes
from targetprop.experiments.epoch_progress import EpochProgress, restore_epoch
from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.experiments.random_state import random_state, restore_random_state
from targetprop.experiments.schedules import restore_schedule
from targetprop.recipe import Method

Precision = Literal["fp32", "bf16", "fp64"]
_COUNTERS = ("epoch", "step", "seconds", "best", "last", "skipped", "skipped_in_a_row")


class GradientFiller(Protocol):
    """What the loop needs of an engine."""

    method: Method

    def backward(self, x: Tensor, y: Tensor, *, measure: bool = False) -> StepReport:
        """Fill ``.grad``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Collect what the engine owns."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        ...


@dataclass
class TrainState:
    """Everything that training changes."""

    model: nn.Module
    engine: GradientFiller
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR  # changes the optimiser's learning rate
    loss: nn.Module  # a mean over the batch
    order: torch.Generator  # of the data, and of the seed of each epoch's augmentation; on the CPU
    precision: Precision = "fp32"  # of the activations; the network of "fp64" is in float64 itself
    max_skipped: int = 10  # steps in a row whose numbers are not finite
    processes: Processes = field(default_factory=Processes)
    epoch: int = 0  # epochs done
    step: int = 0  # steps done
    seconds: float = 0.0  # spent in steps
    best: float = 0.0  # test accuracy so far
    last: dict[str, Any] = field(default_factory=dict)  # what the last epoch was like
    skipped: int = 0  # steps
    skipped_in_a_row: int = 0  # since the last step that was taken
    epoch_progress: EpochProgress | None = None  # None between two epochs

    def state_dict(self) -> dict[str, Any]:
        """Collect all that the rest of the run depends on, from all ranks."""
        progress = self.epoch_progress
        ranks = self.processes.gather((random_state(), progress.right.item() if progress else 0.0))
        return {
            "model": dict(self.model.state_dict()),
            "engine": self.engine.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "order": progress.order if progress else self.order.get_state(),
            "epoch_progress": progress.state_dict(sum(right for _, right in ranks)) if progress else None,
            "random": [random for random, _ in ranks],
            "counters": {name: getattr(self, name) for name in _COUNTERS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where a checkpoint was made, by any number of ranks."""
        try:
            self.model.load_state_dict(state["model"])
            self.engine.load_state_dict(state["engine"])
            self.optimizer.load_state_dict(state["optimizer"])
            restore_schedule(self.schedule, state["schedule"])
            self.order.set_state(state["order"])
            for name in _COUNTERS:
                setattr(self, name, state["counters"][name])
            rank, device = self.processes.rank, next(self.model.parameters()).device
            if state["epoch_progress"] is not None:
                order = self.order.get_state()
                self.epoch_progress = restore_epoch(state["epoch_progress"], order, device, first=rank == 0)
            restore_random_state(state["random"], rank, self.order.initial_seed(), self.step)
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            problem = f"the checkpoint does not fit the run's config.yaml ({error})"
            raise CommandError(f"{problem}; put back the file that the run began with", FAILURE) from error

    def observe(self, skipped: str | None) -> None:
        """Count a step that was taken, or skipped for a reason; too many in a row stop the run."""
        self.skipped_in_a_row = 0 if skipped is None else self.skipped_in_a_row + 1
        self.skipped += skipped is not None
        if self.skipped_in_a_row >= self.max_skipped:
            steps = "a step was" if self.max_skipped == 1 else f"{self.max_skipped} steps in a row were"
            raise FloatingPointError(f"{steps} skipped: {skipped}")

    def check_alike(self) -> None:
        """Make sure that all ranks have the same weights and decoders."""
        if self.processes.size == 1:
            return
        owned = self.engine.state_dict().get("decoders", {})
        tensors = [*self.model.state_dict().values(), *owned.values()]
        sums = torch.stack([tensor.detach().double().sum() for tensor in tensors]).nan_to_num().tolist()
        if any(others != sums for others in self.processes.gather(sums)):
            problem = "the ranks no longer have the same weights, so their machines compute differently"
            raise CommandError(f"{problem}; resume on machines of one kind", FAILURE)
