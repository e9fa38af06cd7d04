r"""How fast an iteration converges, against what the Lipschitz constant predicts.

Both iterations are ``z_{k+1} = z_k − D(z_k) + …``: ``z = x`` with ``D = g∘f − id`` in input space, ``z = u`` with
``D = f∘g̃ − id``, ``g̃(u) = x₀ + g(u) − g(y₀)``, in output space. The bounds of `targetprop.claims.convergence` hold if
``‖J_D‖ ≤ ρ < 1`` on the ball around ``z*`` that the iteration visits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

import targetprop as tp
from targetprop.claims.measure.pairs import Pair
from targetprop.diagnostics import spectral_norm, visited
from targetprop.inversion import Map, per_sample, sample_norm

FAR = 10
FLOOR = 1e-9  # of the first error; below it rounding, not contraction, decides
_SHARES = (0.0, 0.05, 0.15, 0.3, 0.5, 0.75, 1.0)


@dataclass(frozen=True, eq=False)
class Decay:
    """An iteration, watched."""

    norms: Tensor  # the largest ``‖J_D‖`` found on the ball that each sample visited, shape ``(n,)``
    errors: Tensor  # ``‖z_k − z*‖``, shape ``(steps + 1, n)``
    moves: Tensor  # ``‖z_k − z_{k−1}‖``, shape ``(steps, n)``

    @property
    def rho(self) -> float:
        """``ρ``, the largest of all samples."""
        return float(self.norms.max())

    @property
    def above(self) -> Tensor:
        """Where the error is above the floor of rounding, shape of `errors`."""
        return self.errors > FLOOR * self.errors[0]

    @property
    def against_bound(self) -> float:
        """Largest ``‖z_k − z*‖ / (ρᵏ ‖z_0 − z*‖)`` over samples and steps ``k ≥ 1``: at most 1 if the bound holds."""
        powers = self.rho ** torch.arange(1, len(self.errors), dtype=self.errors.dtype).unsqueeze(1)
        return _largest(self.errors[1:] / (powers * self.errors[0]), self.above[1:])

    @property
    def against_a_posteriori(self) -> float:
        """Largest ``‖z_k − z*‖ / (ρ/(1−ρ) ‖z_k − z_{k−1}‖)``; no number where ``ρ ≥ 1``."""
        if self.rho >= 1:
            return float("nan")
        return _largest(self.errors[1:] * (1 - self.rho) / (self.rho * self.moves), self.above[1:])

    @property
    def rates(self) -> Tensor:
        """Measured decay per step and sample, ``(‖z_k − z*‖ / ‖z_0 − z*‖)^{1/k}`` at the last ``k`` above the floor."""
        last = self.above.long().cumprod(0).sum(0) - 1
        reached = self.errors.gather(0, last.unsqueeze(0)).squeeze(0)
        return (reached / self.errors[0]) ** (1 / last.clamp_min(1))


def _largest(values: Tensor, where: Tensor) -> float:
    return float(values[where].max()) if bool(where.any()) else float("nan")


def measure_decay(pair: Pair, space: str, steps: int) -> Decay:
    """Iterate, look for the solution far beyond, and measure the Lipschitz constant in between."""
    known = pair.solution if space == "input-space" else None
    rule = tp.InputSpace if space == "input-space" else tp.OutputSpace
    with torch.no_grad():
        far = steps if known is not None else FAR * steps
        points = visited(pair.f, pair.g, pair.target, pair.x0, rule(steps=far, tolerance=0.0))
        if space == "output-space":
            points = _fed(pair, points)
        solution = points[-1] if known is None else known
        points = points[: steps + 1]
        errors = torch.stack([sample_norm(z - solution) for z in points])
        moves = torch.stack([sample_norm(b - a) for a, b in zip(points, points[1:], strict=False)])
        return Decay(lipschitz_on_ball(_deviation(pair, space), points, solution), errors, moves)


def _fed(pair: Pair, points: list[Tensor]) -> list[Tensor]:
    """What the decoder was fed, ``u_{k+1} = u_k + t − f(x_k)`` from ``u_0 = t``."""
    fed = [pair.target]
    for x in points[:-1]:
        fed.append(fed[-1] + pair.target - pair.f(x))
    return fed


def _deviation(pair: Pair, space: str) -> Map:
    if space == "input-space":
        return lambda x: pair.g(pair.f(x)) - x
    y0 = pair.f(pair.x0)
    return lambda u: pair.f(pair.x0 + pair.g.difference(y0, u - y0)) - u


def lipschitz_on_ball(deviation: Map, points: list[Tensor], solution: Tensor) -> Tensor:
    """Find the largest ``‖J‖`` of a map on the ball around a solution that reaches to all of some points, by sample.

    Segments between points and solution are looked at, and random points of the ball; then each sample's largest two
    again, with more steps of the power iteration.

    Args:
        deviation: the map, each sample by itself.
        points: shape ``(n, d)`` each.
        solution: shape ``(n, d)``.

    Returns:
        Shape ``(n,)``.
    """
    radius = torch.stack([sample_norm(z - solution) for z in points]).amax(0)
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(solution.shape, dtype=solution.dtype, generator=generator) for _ in range(6)]
    candidates = [solution + d * per_sample(radius / sample_norm(d), d) for d in directions]
    for z in points[:4]:
        candidates += [solution + share * (z - solution) for share in _SHARES]
    stacked = torch.stack(candidates)
    chosen = _norms(deviation, stacked, steps=8).topk(2, dim=0).indices
    largest = stacked[chosen, torch.arange(len(solution))]
    return _norms(deviation, largest, steps=150).amax(0)


def _norms(deviation: Map, candidates: Tensor, steps: int) -> Tensor:
    """Spectral norms at several points per sample, shape ``(points, n)``; a deviation may differ by sample."""
    every = torch.func.vmap(deviation)
    flat = candidates.flatten(0, 1)
    found = spectral_norm(lambda z: every(z.view_as(candidates)).flatten(0, 1), flat, steps=steps)
    return found.view(candidates.shape[:2])
