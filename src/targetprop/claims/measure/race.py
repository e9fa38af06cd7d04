"""A contest of optimisers on digits: contenders, their learning rates on an equal budget, and their training curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

import targetprop as tp
from targetprop.claims.altered import Alter, Altered
from targetprop.claims.networks import digits_network, load_digits
from targetprop.diagnostics import DenseInverse
from targetprop.updates import Update

BATCH, LOOKS = 64, 20
TUNING = 1000  # added to the seed of the runs that choose the learning rate
BACKPROP = "back-propagation"
_UPDATES: dict[str, Update] = {
    "gradient": tp.Gradient(), "delta rule": tp.DeltaRule(),
    "least squares": tp.LeastSquares(shrinkage=0.0, shared=False, bounded=False),
}  # fmt: skip
RULES = tuple(_UPDATES)
# The lowest rate of each grid: what the rules call a step differs in size, so each has a grid of its own.
_LOWEST = {
    "adam": dict.fromkeys((BACKPROP, *RULES), 0.01),
    "sgd": {BACKPROP: 0.03, "gradient": 0.03, "delta rule": 0.3, "least squares": 0.003},
}


@dataclass(frozen=True)
class Best:
    """A contender at its best learning rate."""

    rule: str  # update rule, or `BACKPROP`
    label: str  # ``λ`` in words; for back-propagation, the optimiser
    optimizer: str  # "adam" or "sgd"
    rate: float
    inside: bool  # whether it is neither the lowest nor the highest of those tried
    tuned: float  # final loss of the run that it was chosen for
    steps: list[int]  # steps after which the loss was measured
    losses: list[float]  # loss on the training set after those; infinite once the run has diverged
    seconds: float  # median time per step

    @property
    def final(self) -> float:
        """Loss after all steps."""
        return self.losses[-1]

    def at(self, share: float) -> float:
        """Look the loss up after a share of all steps."""
        return [loss for step, loss in zip(self.steps, self.losses, strict=True) if step <= share * self.steps[-1]][-1]

    def steps_to(self, loss: float) -> float:
        """Count the steps to a loss."""
        return next((step for step, value in zip(self.steps, self.losses, strict=True) if value <= loss), inf)

    def beats(self, other: "Best") -> bool:
        """Compare with another contender."""
        return self.final < other.final and self.tuned < other.tuned


def damping_name(damping: float) -> str:
    """Write ``λ``."""
    return f"{damping:g}" if isfinite(damping) else "∞"


def contest(
    seed: int, widths: Sequence[int], steps: int, dampings: Sequence[float], rates: Sequence[float], alter: Alter
) -> dict[tuple[str, str], Best]:
    """Tune every contender on one start of the network, and run it on another."""

    def run(rule: str, label: str, method: tp.Method, optimizers: Sequence[str]) -> Best:
        trials = [(name, _LOWEST[name][rule] * rate) for name in optimizers for rate in rates]
        ends = [train(method, *trial, steps, widths, seed + TUNING, looks=1)[1][-1] for trial in trials]
        name, rate = trials[ends.index(min(ends))]
        tried = [r for n, r in trials if n == name]
        inside = min(tried) < rate < max(tried)
        return Best(rule, label, name, rate, inside, min(ends), *train(method, name, rate, steps, widths, seed))

    found = {(BACKPROP, name): run(BACKPROP, name, tp.method("backprop"), [name]) for name in _LOWEST}
    for rule in RULES:
        for damping in dampings:
            label = damping_name(damping)
            found[rule, label] = run(rule, label, _targets(rule, damping, alter), list(_LOWEST))
    return found


def _targets(rule: str, damping: float, alter: Alter) -> tp.Method:
    exact = DenseInverse(1.0, damping, relative=True) if isfinite(damping) else DenseInverse(w=0.0, damping=1.0)
    return tp.Method(decoder=Altered(exact, alter), update=_UPDATES[rule])


def train(
    method: tp.Method, optimizer: str, rate: float, steps: int, widths: Sequence[int], seed: int, looks: int = LOOKS
) -> tuple[list[int], list[float], float]:
    """Train a network on digits."""
    data, network, loss = load_digits(), digits_network(widths, seed), nn.CrossEntropyLoss()
    engine = tp.TargetPropagation(network, loss, example_input=data.train_x[:2], method=method, seed=seed)
    kind = torch.optim.Adam if optimizer == "adam" else partial(torch.optim.SGD, momentum=0.9)
    chosen = kind(network.parameters(), lr=rate)
    marks, batches = sorted({round(steps * k / looks) for k in range(looks + 1)}), _batches(steps, seed)
    losses: list[float] = []
    times: list[float] = []
    try:
        for step in range(steps + 1):
            if step in marks:
                with torch.no_grad():
                    losses.append(float(loss(network(data.train_x), data.train_y)))
            if step < steps:
                start = perf_counter()
                chosen.zero_grad()
                engine.backward(data.train_x[batches[step]], data.train_y[batches[step]])
                chosen.step()
                times.append(perf_counter() - start)
    except FloatingPointError:
        losses += [inf] * (len(marks) - len(losses))
    return marks, [value if isfinite(value) else inf for value in losses], median(times or [inf])


def _batches(steps: int, seed: int) -> tuple[Tensor, ...]:
    generator, samples = torch.Generator().manual_seed(seed), len(load_digits().train_x)
    rounds = -(-steps * BATCH // samples)
    order = torch.cat([torch.randperm(samples, generator=generator) for _ in range(rounds)])
    return order[: steps * BATCH].split(BATCH)
