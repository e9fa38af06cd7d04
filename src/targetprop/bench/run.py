"""One run: a competitor trains a problem's network, and every step's loss and time are kept."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite
from statistics import fmean
from time import perf_counter

import torch

from targetprop.bench.competitors import Competitor, Stepper
from targetprop.bench.problems import Problem, Task

Progress = Callable[[int, int, float], None]
# What a step may raise where the numbers have left their range.
DIVERGENCE = (FloatingPointError, torch.linalg.LinAlgError)  # pyright: ignore[reportPrivateImportUsage]


@dataclass(frozen=True)
class History:
    """What a run was like."""

    losses: list[float]  # loss of each step's batch, before the step; infinite from where the run diverged
    seconds: list[float]  # time of each step
    measures: dict[str, float]  # loss and measures on all data at the end, by name

    @property
    def diverged(self) -> bool:
        """Whether a loss was not finite."""
        return not isfinite(self.losses[-1])

    def at(self, share: float) -> float:
        """Look up the training loss after a share of the steps."""
        return self._mean(max(1, round(share * len(self.losses))))

    def smooth(self) -> list[float]:
        """Smooth the losses as in `at`."""
        return [self._mean(end) for end in range(1, len(self.losses) + 1)]

    def _mean(self, end: int) -> float:
        """Average the losses before a step over a twentieth of the run."""
        return fmean(self.losses[max(0, end - max(1, len(self.losses) // 20)) : end])


def train(
    problem: Problem, task: Task, competitor: Competitor, seed: int, steps: int, progress: Progress | None = None
) -> History:
    """Train from the start; weights, batch order and schedule depend on nothing but problem, seed and steps."""
    network = problem.network(seed).to(problem.device)
    stepper = competitor.start(network, task.loss, task.x[:2], seed)
    schedules = [problem.schedule.make(optimizer, steps) for optimizer in stepper.optimizers]
    batches, losses, seconds = task.batches(problem.batch, seed), [], []
    for _ in range(steps):
        x, y = next(batches)
        start = perf_counter()
        try:
            _decay(stepper, problem.weight_decay)
            loss = float(stepper.step(x, y))
        except DIVERGENCE:
            loss = inf
        seconds.append(perf_counter() - start)
        if not isfinite(loss):
            return History(losses + [inf] * (steps - len(losses)), seconds, {})
        losses.append(loss)
        for schedule in schedules:
            schedule.step()
        if progress is not None:
            progress(len(losses), steps, loss)
    measures = task.evaluate(network)
    if not all(map(isfinite, measures.values())):
        return History([*losses[:-1], inf], seconds, {})
    return History(losses, seconds, measures)


@torch.no_grad()
def _decay(stepper: Stepper, weight_decay: float) -> None:
    for optimizer in stepper.optimizers if weight_decay else ():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - group["lr"] * weight_decay)
