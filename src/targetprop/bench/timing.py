"""Time per step, compared fairly on a noisy machine: the competitors take turns in one process."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import nan
from statistics import median
from time import perf_counter

import torch

from targetprop.bench.competitors import Competitor, Stepper
from targetprop.bench.problems import Problem, Task
from targetprop.bench.run import DIVERGENCE


@dataclass(frozen=True)
class Times:
    """Times per step."""

    seconds: dict[str, float]  # median over the rounds, by competitor
    ratios: dict[str, float]  # median over the rounds of the ratio to the reference's time in the same round


def alternate(
    problem: Problem,
    task: Task,
    competitors: Mapping[str, Competitor],
    reference: str,
    rounds: int = 5,
    steps: int = 20,
    settle: int = 100,
) -> Times:
    """Let competitors take turns, after as many steps as it takes until a step costs what it will cost in a long run.

    Args:
        problem: the problem.
        task: its data.
        competitors: who competes, by name.
        reference: whose time the ratios are to.
        rounds: turns of each that count; one before them does not.
        steps: steps of a turn.
        settle: steps of each before the first turn, at most those of the problem; factors and bases are renewed more
            often in the beginning.

    Returns:
        The times.
    """
    starts = {name: _start(problem, task, competitor) for name, competitor in competitors.items()}
    batches, found = task.batches(problem.batch, 0), {name: [] for name in competitors}
    for stepper in starts.values():
        with suppress(*DIVERGENCE):
            for _ in range(min(settle, problem.steps)):
                stepper.step(*next(batches))
    for _ in range(rounds + 1):
        turn = [next(batches) for _ in range(steps)]
        for name, stepper in starts.items():
            begin = perf_counter()
            try:
                losses = [stepper.step(x, y) for x, y in turn]
                torch.stack(losses).tolist()  # on an accelerator the clock stops when the work is done
                found[name].append((perf_counter() - begin) / steps)
            except DIVERGENCE:
                found[name].append(nan)
    return summarise({name: times[1:] for name, times in found.items()}, reference)


def summarise(found: Mapping[str, list[float]], reference: str) -> Times:
    """Take medians.

    >>> summarise({"adam": [1.0, 2.0, 4.0], "other": [2.0, 6.0, 8.0]}, "adam").ratios
    {'adam': 1.0, 'other': 2.0}
    """
    ratios = {n: median(a / b for a, b in zip(times, found[reference], strict=True)) for n, times in found.items()}
    return Times({name: median(times) for name, times in found.items()}, ratios)


def _start(problem: Problem, task: Task, competitor: Competitor) -> Stepper:
    stepper = competitor.start(problem.network(0).to(problem.device), task.loss, task.x[:2], 0)
    for optimizer in stepper.optimizers:  # times do not depend on the rate, and a small one keeps the numbers finite
        for group in optimizer.param_groups:
            group["lr"] *= 1e-2
    return stepper
