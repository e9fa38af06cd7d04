"""Sizes of each layer's change with and without influence normalisation, beside back-propagation's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

import targetprop as tp
from targetprop.claims.altered import Alter
from targetprop.claims.measure.trial import Trial, random_trial
from targetprop.claims.networks import DTYPE
from targetprop.diagnostics import DenseInverse
from targetprop.step_report import root_mean_square

BACKPROP, NORMALISED, PLAIN = KINDS = ("back-propagation", "normalised", "not normalised")
BETA = 1e-6
_LARGEST_GAIN = 4.0


@dataclass(frozen=True)
class Rule:
    """How layers are inverted."""

    name: str
    damping: float = 0.0  # ``λ``, in units of the mean diagonal of ``JJᵀ``
    steps: int = 1  # steps of the input-space iteration

    def method(self, *, normalise: bool) -> tp.Method:
        """Compose the method."""
        return tp.Method(
            output_target=tp.GradientStep(BETA),
            decoder=DenseInverse(1.0, self.damping, relative=True),
            inversion=tp.InputSpace(steps=self.steps, tolerance=0.0) if self.steps > 1 else tp.Difference(),
            influence=tp.Influence(normalise),
        )


@dataclass(frozen=True)
class Comparison:
    """Changes of every layer, by kind."""

    weights: dict[str, list[Tensor]]  # one flat gradient per layer
    activations: dict[str, list[Tensor]]  # ``Δ_l / β`` per layer, each of shape ``(n, d_l)``

    def sizes(self, of: str, kind: str) -> list[float]:
        """Measure each layer's change, of "weights" or "activations" (root mean square over samples)."""
        if of == "weights":
            return [float(gradient.norm()) for gradient in self.weights[kind]]
        return [float(root_mean_square(delta)) for delta in self.activations[kind]]

    def projections(self) -> list[Tensor]:
        """Predict the size of normalised changes: the gradient's, projected on the direction of the change."""
        pairs = zip(self.activations[BACKPROP], self.activations[PLAIN], strict=True)
        return [gradient.norm(dim=1) * cosine_similarity(gradient, change) for gradient, change in pairs]

    def deviation(self) -> float:
        """Compare normalised changes with that prediction."""
        layers = zip(self.activations[NORMALISED], self.projections(), self.activations[BACKPROP], strict=True)
        return max(float(((a.norm(dim=1) - size) / b.norm(dim=1)).abs().max()) for a, size, b in layers)


def compare(trial: Trial, rule: Rule) -> Comparison:
    """Measure the changes of all kinds."""
    methods = {kind: rule.method(normalise=kind == NORMALISED) for kind in (NORMALISED, PLAIN)}
    weights = {kind: trial.updates(method) for kind, method in methods.items()}
    changes = {kind: [delta / BETA for delta in trial.changes(method)] for kind, method in methods.items()}
    return Comparison({BACKPROP: trial.backprop(), **weights}, {BACKPROP: trial.backprop_changes(), **changes})


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Compute Spearman's rank correlation of values without ties."""
    ranks = torch.tensor([a, b], dtype=DTYPE).argsort(1).argsort(1).to(DTYPE)
    return float(torch.corrcoef(ranks)[0, 1])


def scaled_trial(
    width: int, depth: int, activation: Callable[[], nn.Module], seed: int, alter: Alter, spread: float = 1.0
) -> Trial:
    """Draw a network whose layers are scaled by gains from 1/4 to 4, in random order and with product 1."""
    gains = torch.logspace(-1, 1, depth, base=_LARGEST_GAIN, dtype=DTYPE)
    gains = gains[torch.randperm(depth, generator=torch.Generator().manual_seed(seed))].tolist()
    widths = [width] * (depth + 1)
    return random_trial(widths, activation, seed, 16, spread=spread, gains=gains, bias=1.0, alter=alter)
