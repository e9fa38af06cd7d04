r"""K-FAC whose step length, momentum and damping set themselves by the quadratic model of the loss.

With ``d₁`` the natural gradient and ``d₂`` the step before, a step is ``δ = α₁ d₁ + α₂ d₂`` at the minimum of

    ``q(δ) = ⟨∇, δ⟩ + ½ δᵀ (F + λ I) δ``,    ``F = Jᵀ H J`` exactly, by one forward derivative per direction

and ``λ`` follows the rule of Levenberg and Marquardt: every few steps it shrinks where the loss of the batch fell by
more than 3/4 of ``−q``, and grows where it fell by less than 1/4. Source: Martens & Grosse 2015, arXiv:1503.05671,
sections 6.4 to 6.6 and 7.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.functional import hvp
from torch.func import functional_call, jvp

from targetprop.bench.competitors.competitor import Competitor, Range, Stepper
from targetprop.bench.competitors.kfac import FactoredStepper, Factors, inner
from targetprop.bench.competitors.maps import in_sequence
from targetprop.bench.losses import SampledLoss

_RATE = 0.95  # of the damping, per step


@dataclass(frozen=True)
class AdaptiveKfac(Competitor):
    """K-FAC that sets its own step length, momentum and damping."""

    lr: float = 1.0  # share of the model's step that is taken
    damping: float = 1e1  # the first ``λ``
    decay: float = 0.95  # share of the old factors that each batch keeps
    every: int = 5  # steps that one factorisation and one ``λ`` serve
    least: float = 1e-3  # where ``λ`` stops shrinking: as the learning rate falls, any model of the loss becomes exact
    space: ClassVar = {
        "lr": Range(1e-1, 1.0), "damping": Range(1e0, 1e2), "decay": Range(5e-3, 5e-1, complement=True),
    }  # fmt: skip

    def start(self, network: nn.Module, loss: SampledLoss, example: Tensor, seed: int) -> Stepper:
        """Make the factors; see `Competitor.start`."""
        return AdaptiveKfacStepper(self, in_sequence(network), loss, seed)


class AdaptiveKfacStepper(FactoredStepper):
    """Adaptive K-FAC on one network."""

    def __init__(self, settings: AdaptiveKfac, network: nn.Sequential, loss: SampledLoss, seed: int) -> None:
        """Make the optimiser and the factors."""
        optimizer = torch.optim.SGD(network.parameters(), settings.lr)
        super().__init__(network, loss, seed, optimizer, Factors(settings.decay, settings.every))
        self._settings, self.damping, self._count, self._previous = settings, settings.damping, 0, None

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Take the model's step; see `Stepper.step`."""
        output, value, maps, gradients, natural = self.observe(x, y, self.damping)
        directions = [natural] if self._previous is None else [natural, self._previous]
        quadratic, slopes = self._model(directions, gradients, output, x, y)
        lengths = torch.linalg.lstsq(quadratic, -slopes).solution
        step = [torch.tensordot(lengths, torch.stack(parts), 1) for parts in zip(*directions, strict=True)]
        for one, change in zip(maps, step, strict=True):
            one.set_gradient(-change)
        self.optimizers[0].step()
        rate = self.optimizers[0].param_groups[0]["lr"]
        self._previous, self._count = [rate * change for change in step], self._count + 1
        if self._count % self._settings.every == 0:
            expected = rate * lengths @ slopes + rate**2 * lengths @ quadratic @ lengths / 2
            self._adapt(float(value), float(expected), x, y)
        return value

    def _model(
        self, directions: list[list[Tensor]], gradients: list[Tensor], output: Tensor, x: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute ``dᵢᵀ (F + λ I) dⱼ`` and ``⟨∇, dᵢ⟩``."""
        moved = [self._move(direction, x) for direction in directions]
        curved = [_one(hvp(lambda z: self._loss(z, y), output, m)[1]) for m in moved]
        rows = [
            [(m * c).sum() + self.damping * inner(d, e) for c, e in zip(curved, directions, strict=True)]
            for m, d in zip(moved, directions, strict=True)
        ]
        slopes = torch.stack([inner(d, gradients) for d in directions])
        return torch.stack([torch.stack(row) for row in rows]), slopes

    def _move(self, direction: list[Tensor], x: Tensor) -> Tensor:
        """Compute ``J d``, the change of the output."""
        names = [name for name, _ in self._network.named_parameters()]
        values = {name: p.detach() for name, p in self._network.named_parameters()}
        parts: list[Tensor] = []
        linears = [module for module in self._network if isinstance(module, nn.Linear)]
        for linear, d in zip(linears, direction, strict=True):
            parts += [d[:, : linear.in_features]] + ([d[:, -1]] if linear.bias is not None else [])
        tangents = dict(zip(names, parts, strict=True))
        return jvp(lambda p: functional_call(self._network, p, (x,)), (values,), (tangents,))[1]

    def _adapt(self, before: float, expected: float, x: Tensor, y: Tensor) -> None:
        with torch.no_grad():
            reduction = (float(self._loss(self._network(x), y)) - before) / expected if expected < 0 else 0.0
        if reduction > 0.75:
            self.damping = max(self.damping * _RATE**self._settings.every, self._settings.least)
        elif not reduction >= 0.25:
            self.damping /= _RATE**self._settings.every


def _one(found: Tensor | tuple[Tensor, ...]) -> Tensor:
    assert isinstance(found, Tensor)
    return found
