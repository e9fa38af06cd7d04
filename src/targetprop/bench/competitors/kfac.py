r"""K-FAC for dense layers: natural gradient with a Kronecker-factored Fisher matrix per layer.

With inputs ``a`` (constant 1 included) and per-sample gradients ``g`` at the map's output, for labels drawn from the
network's own distribution:

    ``A = E[a aᵀ]``, ``G = E[g gᵀ]``,    ``ΔW ∝ −(G + √λ/π I)⁻¹ ∇W (A + π√λ I)⁻¹``,    ``π² = (tr A/d) / (tr G/k)``

Both are running averages, factorised every few steps. A step whose predicted change ``lr² Σ ⟨ΔW, ∇W⟩`` exceeds a bound
is cut back to it. Source: Martens & Grosse 2015, arXiv:1503.05671; the bound is that of Ba 2017.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from targetprop.bench.competitors.competitor import Competitor, Range, Stepper
from targetprop.bench.competitors.maps import Map, in_sequence, output_gradients, run_forward
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
    fisher: Literal["drawn", "empirical"] = "drawn"  # labels of the second backward pass; empirical: the data's
    space: ClassVar = {"lr": Range(1e-2, 1.0), "damping": Range(1e-1, 1e1), "clip": Range(1e-2, 1.0)}

    def start(self, network: nn.Module, loss: SampledLoss, example: Tensor, seed: int) -> Stepper:
        """Make the factors; see `Competitor.start`."""
        return KfacStepper(self, in_sequence(network), loss, seed)


class Factors:
    """Running ``A`` and ``G`` of one map."""

    def __init__(self, decay: float, every: int) -> None:
        """Start without observations."""
        self._decay, self._every, self._count = decay, every, 0
        self.a = self.g = self._a_factor = self._g_factor = torch.empty(0)

    def observe(self, a: Tensor, g: Tensor) -> None:
        """Add a batch."""
        new = (a.T @ a / len(a), g.T @ g / len(a))
        if self._count == 0:
            self.a, self.g = (torch.zeros_like(m) for m in new)
        self._count += 1
        weight = (1 - self._decay) / (1 - self._decay**self._count)  # of the newest batch, with bias correction
        self.a.lerp_(new[0], weight)
        self.g.lerp_(new[1], weight)

    def solve(self, gradient: Tensor, damping: float) -> Tensor:
        """Apply the damped inverse, factorised anew every few steps."""
        if (self._count - 1) % self._every == 0:
            tiny = torch.finfo(self.a.dtype).tiny
            root, pi = damping**0.5, (_mean_diagonal(self.a) / (_mean_diagonal(self.g) + tiny) + tiny).sqrt()
            self._a_factor = torch.linalg.cholesky(self.a + _identity(self.a) * (pi * root))
            self._g_factor = torch.linalg.cholesky(self.g + _identity(self.g) * (root / pi))
        return torch.cholesky_solve(torch.cholesky_solve(gradient, self._g_factor).T, self._a_factor).T


class FactoredStepper(Stepper):
    """What all kinds of K-FAC share: a network with the factors of its maps."""

    def __init__(
        self, network: nn.Sequential, loss: SampledLoss, seed: int, optimizer: torch.optim.Optimizer, factors: Factors
    ) -> None:
        """Give every map factors like those given."""
        super().__init__([optimizer])
        device = next(network.parameters()).device
        self._network, self._loss, self._generator = network, loss, torch.Generator(device).manual_seed(seed)
        self.factors = [deepcopy(factors) for module in network if isinstance(module, nn.Linear)]

    def observe(
        self, x: Tensor, y: Tensor, damping: float, *, draw: bool = True
    ) -> tuple[Tensor, Tensor, list[Map], list[Tensor], list[Tensor]]:
        """Run a batch; return output, loss, maps, their gradients and their natural gradients."""
        output, maps = run_forward(self._network, x)
        value = self._loss(output, y)
        own = output_gradients(value, maps, keep_graph=True)
        drawn = own
        if draw:
            drawn = output_gradients(self._loss(output, self._loss.draw(output.detach(), self._generator)), maps)
        with torch.no_grad():
            gradients, natural = [g.T @ one.a / len(g) for g, one in zip(own, maps, strict=True)], []
            for factors, one, g, gradient in zip(self.factors, maps, drawn, gradients, strict=True):
                factors.observe(one.a, g)
                natural.append(factors.solve(gradient, damping))
        return output.detach(), value.detach(), maps, gradients, natural


class KfacStepper(FactoredStepper):
    """K-FAC on one network."""

    def __init__(self, settings: Kfac, network: nn.Sequential, loss: SampledLoss, seed: int) -> None:
        """Make the optimiser and the factors."""
        optimizer = torch.optim.SGD(network.parameters(), settings.lr, momentum=settings.momentum)
        super().__init__(network, loss, seed, optimizer, Factors(settings.decay, settings.every))
        self._settings = settings

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Take a bounded natural-gradient step; see `Stepper.step`."""
        draw, rate = self._settings.fisher == "drawn", self.optimizers[0].param_groups[0]["lr"]
        _, value, maps, gradients, natural = self.observe(x, y, self._settings.damping, draw=draw)
        predicted = inner(natural, gradients)
        bound = (self._settings.clip / (rate**2 * predicted).clamp_min(1e-30)).sqrt().clamp_max(1.0)
        for one, change in zip(maps, natural, strict=True):
            one.set_gradient(change * bound)
        self.optimizers[0].step()
        return value


def inner(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """Multiply two changes of all maps."""
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()


def _mean_diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal().mean()


def _identity(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
