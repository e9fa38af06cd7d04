r"""The one loop behind every inversion rule.

A rule turns its iterate ``u`` into an estimate ``x(u) − x₀`` and a direction ``d(u)``; the loop takes ``u ← u + α
d(u)``, or mixes the history (Anderson), and keeps for each sample the estimate with the smallest ``‖t − f(x)‖``.
Samples stop on their own: converged when ``‖d‖ ≤ tolerance · ‖d_0‖``, diverged when ``‖d‖`` is not finite or has grown
`GROWTH`-fold; one that has come no closer until then falls back to the difference target. There is no transfer to the
host inside the first `CHECK_EVERY` steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from targetprop.inversion.anderson import Anderson
from targetprop.inversion.columns import Columns
from targetprop.inversion.problem import Evaluation, Problem, Solution, Status, per_sample, sample_norm
from targetprop.precision import no_autocast
from targetprop.settings import check_types

GROWTH = 10.0
CHECK_EVERY = 10


@dataclass(frozen=True)
class Inversion(ABC):
    """Settings of an inversion rule; a rule says where to start and what a step is."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Check the settings, by a ``ValueError``."""
        check_types(self)

    @property
    def needs_decoder(self) -> bool:
        """Whether the rule calls ``g``."""
        return True

    @abstractmethod
    def start(self, problem: Problem) -> Tensor:
        """Choose the first iterate.

        Args:
            problem: what is to be inverted.

        Returns:
            The iterate ``u_0``, shape ``(n, …)``.
        """

    @abstractmethod
    def evaluate(self, problem: Problem, u: Tensor, step: int, *, error: bool, direction: bool) -> Evaluation:
        """Look at an iterate.

        Args:
            problem: what is to be inverted.
            u: the iterate.
            step: how many steps led to it.
            error: whether the forward error is asked for.
            direction: whether the direction is asked for.

        Returns:
            The estimate and what was asked for.
        """


@dataclass(frozen=True)
class Iteration(Inversion):
    """Settings that iterative rules share.

    Attributes:
        steps: most steps taken, ≥ 0.
        alpha: step size ``α`` in (0, 2]; below 1 cures oscillation at kinks.
        tolerance: a sample has converged when its step has shrunk to this share of its first one.
        anderson: how many past steps Anderson mixing remembers; 0 is plain iteration.
    """

    steps: int = 100
    alpha: float = 1.0
    tolerance: float = 1e-6
    anderson: int = 0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: a setting is out of its range.
        """
        super().__post_init__()
        for name, good, meaning in (
            ("steps", self.steps >= 0, "must be ≥ 0"),
            ("alpha", 0 < self.alpha <= 2, "must lie in (0, 2]"),
            ("tolerance", self.tolerance >= 0, "must be ≥ 0"),
            ("anderson", self.anderson >= 0, "is a number of remembered steps, ≥ 0"),
        ):
            if not good:
                raise ValueError(f"{name} {meaning}; got {getattr(self, name)}")


def iterate(
    evaluate: Callable[[Tensor, int, bool, bool], Evaluation],
    u: Tensor,
    x0: Tensor,
    settings: Inversion,
    *,
    measure: bool,
    complete_from: int = 0,
    columns: Columns | None = None,
) -> Solution:
    """Run the loop on any evaluator; rules and joint sweeps share it.

    Args:
        evaluate: ``(u, step, error wanted, direction wanted)`` to an evaluation.
        u: first iterate.
        x0: where the forward pass stands, and what a sample falls back to when nothing finite is found.
        settings: steps, step size, tolerance and mixing; a rule that is no `Iteration` is one single estimate.
        measure: whether the residuals of a single estimate, and of the last direction, are asked for.
        complete_from: the first step whose estimate may be the answer; until then a moving sample neither converges
            nor counts as diverged for growing.
        columns: where the columns of the iterate are, if not all here; one single estimate does not look at others.

    Returns:
        The solution.
    """
    columns = Columns() if columns is None else columns
    if not isinstance(settings, Iteration) or settings.steps == 0:
        return _single(evaluate(u, 0, measure, measure), x0)
    history = Anderson(settings.anderson, settings.alpha, columns) if settings.anderson else None
    state: _Tracker | None = None
    for step in range(settings.steps + 1):
        last = step == settings.steps
        look = evaluate(u, step, True, measure or not last)
        sizes = _Sizes.measure(look, columns)
        state = _Tracker.begin(x0, look, sizes) if state is None else state
        state.observe(look, sizes, step, settings.tolerance, complete_from)
        if last or (step % CHECK_EVERY == CHECK_EVERY - 1 and not bool(state.active.any())):
            break
        assert look.direction is not None
        with no_autocast(u):
            move = settings.alpha * look.direction if history is None else history.move(u, look.direction)
        u = torch.where(per_sample(state.active, u), u + move, u)
    assert state is not None
    fell, solution = state.solution(columns)
    if fell is None or not measure or not bool(fell.any()):
        return solution
    error = evaluate(state.best, 1, True, False).error
    assert error is not None and solution.forward_residual is not None
    return replace(solution, forward_residual=torch.where(fell, columns.norms(error)[0], solution.forward_residual))


def _single(look: Evaluation, x0: Tensor) -> Solution:
    finite = sample_norm(look.delta) < torch.inf  # false for NaN too
    status = int(Status.DIVERGED) - finite.long()
    delta = look.delta
    good = delta.is_cpu and bool(finite.all())  # looking is cheap on the CPU only
    if look.fallback is not None and not good:
        falls = ~finite & (sample_norm(look.fallback) < torch.inf)
        status = torch.where(falls, int(Status.FALLBACK), status)
        finite, delta = finite | falls, torch.where(per_sample(falls, delta), look.fallback, delta)
    return Solution(
        status=status,
        steps=torch.zeros_like(status),
        forward_residual=None if look.error is None else sample_norm(look.error),
        inverse_residual=None if look.direction is None else sample_norm(look.direction),
        x0=x0,
        delta=delta if good else _fill(delta, finite),
    )


def _fill(delta: Tensor, finite: Tensor) -> Tensor:
    """Put zeros where a sample is not finite; on the CPU, where looking is cheap, only if there is one."""
    if delta.is_cpu and bool(finite.all()):
        return delta
    return delta.masked_fill(per_sample(~finite, delta), 0.0)


@dataclass(frozen=True, eq=False)
class _Sizes:
    """Norms of what an evaluation returned, shape ``(n,)`` each."""

    error: Tensor
    delta: Tensor
    direction: Tensor | None

    @classmethod
    def measure(cls, look: Evaluation, columns: Columns) -> "_Sizes":
        assert look.error is not None
        values = (look.error, look.delta, *([] if look.direction is None else [look.direction]))
        error, delta, *direction = columns.norms(*values)
        return cls(error, delta, direction[0] if direction else None)


@dataclass
class _Tracker:
    """Best iterate and status of every sample while the loop runs."""

    x0: Tensor
    best: Tensor
    residual: Tensor
    inverse: Tensor
    first: Tensor
    active: Tensor
    status: Tensor
    steps: Tensor
    start: Tensor
    fallback: Tensor | None
    known: bool  # whether the fallback is the first estimate itself, whose residual was measured

    @classmethod
    def begin(cls, x0: Tensor, look: Evaluation, sizes: _Sizes) -> "_Tracker":
        assert sizes.direction is not None
        first = sizes.direction
        first = first.masked_fill(first == torch.inf, torch.nan)  # no later step is to be compared with it
        active = torch.ones_like(first, dtype=torch.bool)
        steps = torch.zeros_like(active, dtype=torch.long)
        worst = torch.full_like(first, torch.inf)
        status = torch.full_like(steps, int(Status.MAX_STEPS))
        return cls(
            x0,
            torch.zeros_like(look.delta),
            worst,
            first,
            first,
            active,
            status,
            steps,
            sizes.error,
            look.fallback,
            look.fallback is look.delta,
        )

    def observe(self, look: Evaluation, sizes: _Sizes, step: int, tolerance: float, complete_from: int) -> None:
        residual = sizes.error
        finite = (residual < torch.inf) & (sizes.delta < torch.inf)
        if step == 0 or step >= complete_from:
            better = self.active & finite & ((residual < self.residual) | (step == complete_from))
            self.best = torch.where(per_sample(better, look.delta), look.delta, self.best)
            self.residual = torch.where(better, residual, self.residual)
        self.steps = torch.where(self.active, step, self.steps)
        norm = self.inverse if sizes.direction is None else sizes.direction
        self.inverse = torch.where(self.active, norm, self.inverse)
        if step < complete_from:
            self.first = torch.maximum(self.first, norm)
        diverged = self.active & ~(finite & (norm <= GROWTH * self.first))
        converged = self.active & ~diverged & (norm <= tolerance * self.first)
        if sizes.direction is None or 0 < step < complete_from:
            converged = torch.zeros_like(converged)
        self.status = torch.where(diverged, int(Status.DIVERGED), self.status)
        self.status = torch.where(converged, int(Status.CONVERGED), self.status)
        self.active = self.active & ~diverged & ~converged

    def solution(self, columns: Columns) -> tuple[Tensor | None, Solution]:
        """Let samples that diverged without coming closer fall back; returns whose residual is unknown, and all."""
        fell = None
        if self.fallback is not None:
            closer = (self.residual < self.start) | ~(columns.norms(self.fallback)[0] < torch.inf)
            fell = (self.status == Status.DIVERGED) & ~closer
            self.best = torch.where(per_sample(fell, self.best), self.fallback, self.best)
            self.residual = self.residual if self.known else self.residual.masked_fill(fell, torch.nan)
            self.status = torch.where(fell, int(Status.FALLBACK), self.status)
        return None if self.known else fell, Solution(
            self.status, self.steps, self.residual, self.inverse, self.x0, self.best
        )
