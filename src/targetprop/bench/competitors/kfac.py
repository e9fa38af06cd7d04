r"""K-FAC for dense layers: natural gradient with a Kronecker-factored Fisher matrix per layer.

With inputs ``a`` (constant 1 included) and per-sample gradients ``g`` at the map's output, for labels drawn from the
network's own distribution:

    ``A = E[a aᵀ]``, ``G = E[g gᵀ]``,    ``ΔW ∝ −(G + √λ/π I)⁻¹ ∇W (A + π√λ I)⁻¹``,    ``π² = (tr A/d) / (tr G/k)``

Both are running averages, factorised every few steps. A step whose predicted change ``lr² Σ ⟨ΔW, ∇W⟩`` exceeds a bound
is cut back to it. Source: Martens & Grosse 2015, arXiv:1503.05671; the bound is that of Ba 2017.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from targetprop.bench.competitors.competitor import Competitor, Range, Stepper
from targetprop.bench.competitors.maps import Map, output_gradients, run_forward
from targetprop.bench.losses import SampledLoss


@dataclass(frozen=True)
class Kfac(Competitor):
    """K-FAC with momentum."""

    lr: float = 1e-1
    damping: float = 1.0  # ``λ``
    clip: float = 1e-1  # largest predicted change of a step
    momentum: float = 0.9  # share of the last change that is kept
    decay: float = 0.95  # share of the old factors that each batch keeps
    every: int = 5  # steps that one factorisation serves
    # labels of the second backward pass: drawn from the network, or those of the data
    fisher: Literal["drawn", "empirical"] = "drawn"
    space: ClassVar = {"lr": Range(1e-2, 1.0), "damping": Range(1e-1, 1e1), "clip": Range(1e-2, 1.0)}

    def start(self, network: nn.Sequential, loss: SampledLoss, example: Tensor, seed: int) -> Stepper:
        """Make the factors; see `Competitor.start`."""
        return KfacStepper(self, network, loss, seed)


class Factors:
    """Running ``A`` and ``G`` of one map."""

    def __init__(self, settings: Kfac) -> None:
        """Start without observations."""
        self._settings, self._count = settings, 0
        self.a = self.g = self._a_factor = self._g_factor = torch.empty(0)

    def observe(self, a: Tensor, g: Tensor) -> None:
        """Add a batch."""
        keep, n = self._settings.decay, len(a)
        new = (a.T @ a / n, g.T @ g / n)
        if self._count == 0:
            self.a, self.g = (torch.zeros_like(m) for m in new)
        self._count += 1
        weight = (1 - keep) / (1 - keep**self._count)  # of the newest batch, with bias correction
        self.a.lerp_(new[0], weight)
        self.g.lerp_(new[1], weight)

    def solve(self, gradient: Tensor, damping: float | None = None) -> Tensor:
        """Apply the damped inverse."""
        if (self._count - 1) % self._settings.every == 0:
            self._factorise(self._settings.damping if damping is None else damping)
        return torch.cholesky_solve(torch.cholesky_solve(gradient, self._g_factor).T, self._a_factor).T

    def _factorise(self, damping: float) -> None:
        tiny = torch.finfo(self.a.dtype).tiny
        root, pi = damping**0.5, (_mean_diagonal(self.a) / (_mean_diagonal(self.g) + tiny) + tiny).sqrt()
        self._a_factor = torch.linalg.cholesky(self.a + _identity(self.a) * (pi * root))
        self._g_factor = torch.linalg.cholesky(self.g + _identity(self.g) * (root / pi))


class KfacStepper(Stepper):
    """K-FAC on one network."""

    def __init__(self, settings: Kfac, network: nn.Sequential, loss: SampledLoss, seed: int) -> None:
        """Make the optimiser and the factors."""
        super().__init__([torch.optim.SGD(network.parameters(), settings.lr, momentum=settings.momentum)])
        self._settings, self._network, self._loss = settings, network, loss
        self._generator = torch.Generator().manual_seed(seed)
        self.factors = [Factors(settings) for module in network if isinstance(module, nn.Linear)]

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Take a natural-gradient step; see `Stepper.step`."""
        output, maps = run_forward(self._network, x)
        value = self._loss(output, y)
        own = output_gradients(value, maps, keep_graph=True)
        drawn = own
        if self._settings.fisher == "drawn":
            drawn = output_gradients(self._loss(output, self._loss.draw(output.detach(), self._generator)), maps)
        with torch.no_grad():
            self._write(maps, own, drawn)
        self.optimizers[0].step()
        return value.detach()

    def _write(self, maps: list[Map], own: list[Tensor], drawn: list[Tensor]) -> None:
        """Fill ``.grad`` with the bounded natural gradient."""
        changes, predicted = [], torch.zeros(())
        for factors, one, g, s in zip(self.factors, maps, own, drawn, strict=True):
            factors.observe(one.a, s)
            gradient = g.T @ one.a / len(g)
            changes.append(factors.solve(gradient))
            predicted = predicted + (changes[-1] * gradient).sum()
        rate = self.optimizers[0].param_groups[0]["lr"]
        bound = (self._settings.clip / (rate**2 * predicted).clamp_min(1e-30)).sqrt().clamp_max(1.0)
        for one, change in zip(maps, changes, strict=True):
            one.set_gradient(change * bound)


def _mean_diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal().mean()


def _identity(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
