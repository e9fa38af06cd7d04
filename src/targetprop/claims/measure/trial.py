r"""One network on one batch, on which a claim takes steps of target propagation and compares them with dense algebra.

>>> import torch, targetprop as tp
>>> from torch import nn
>>> from targetprop.diagnostics import DenseInverse
>>> x, y = torch.ones(2, 3), torch.zeros(2, 1)
>>> trial = Trial(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)), x, y)
>>> changes = trial.changes(tp.Method(decoder=DenseInverse()))
>>> [tuple(change.shape) for change in changes]
[(2, 3), (2, 1)]
>>> direction_error(torch.tensor([[1.0, 0.0]]), torch.tensor([[-2.0, 0.0]]))
tensor([2.])
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import targetprop as tp
from targetprop.claims.altered import Alter, Altered, unaltered
from targetprop.claims.networks import DTYPE, random_network
from targetprop.diagnostics import activations
from targetprop.inversion import per_sample, sample_norm
from targetprop.layers import Cut, Record, record_layers
from targetprop.output_target import Loss, loss_gradient
from targetprop.targets import propagate


@dataclass(frozen=True, eq=False)
class Trial:
    """A network, a batch and a loss; every method leaves them as they were."""

    network: nn.Sequential  # the network
    x: Tensor  # its input, shape ``(n, …)``
    y: Tensor  # what the loss compares its output with
    loss: Loss = nn.MSELoss()  # the loss; summed over the batch, samples have the same Δ alone and together
    cut: Cut = "post-activation"  # where layers begin and end, whatever a method says
    alter: Alter = unaltered  # what becomes of every inverse of a method

    def sample(self, index: int) -> "Trial":
        """Take one sample by itself."""
        rows = slice(index, index + 1)
        return replace(self, x=self.x[rows], y=self.y[rows])

    def record(self) -> Record:
        """Run the network."""
        return record_layers(self.network, self.x, self.cut)

    def changes(self, method: tp.Method) -> list[Tensor]:
        """Carry the output's change down."""
        engine = self._engine(method)
        record = engine.record(self.x)
        delta = method.output_target(record.output, self.y, self.loss).delta
        with torch.no_grad():
            found = propagate(record, engine.bank, delta, method.inversion, method.propagation, measure=False).deltas
            return method.influence(found, delta)

    def updates(self, method: tp.Method) -> list[Tensor]:
        """Take ``.grad`` by target propagation."""
        self.network.zero_grad()
        self._engine(method).backward(self.x, self.y)
        return self._gradients()

    def backprop(self) -> list[Tensor]:
        """Take the gradient by ``loss.backward()``."""
        self.network.zero_grad()
        self.loss(self.network(self.x), self.y).backward()
        return self._gradients()

    def backprop_changes(self) -> list[Tensor]:
        """Differentiate each sample's loss in the activations."""
        values = activations(self.record())
        n = 1 if getattr(self.loss, "reduction", "mean") == "sum" else len(self.x)
        seed = -n * loss_gradient(values[-1], self.y, self.loss).output
        return list(torch.autograd.grad(values[-1], values[1:], seed))

    def _engine(self, method: tp.Method) -> tp.TargetPropagation:
        method = replace(method, cut=self.cut, decoder=Altered(method.decoder, self.alter))
        return tp.TargetPropagation(self.network, self.loss, example_input=self.x, method=method, seed=0)

    def _gradients(self) -> list[Tensor]:
        layers = [list(layer.layer.parameters()) for layer in self.record().layers]
        found = [torch.cat([p.grad.flatten() for p in layer if p.grad is not None]) for layer in layers]
        self.network.zero_grad()
        return found


def random_trial(
    widths: Sequence[int], activation: Callable[[], nn.Module], seed: int, samples: int, *, spread: float,
    gains: Sequence[float] | None = None, bias: float = 0.1, alter: Alter = unaltered,
) -> Trial:  # fmt: skip
    """Draw a network, cut as in the paper, ``f(h) = Wσ(h) + b``, and a batch of normal inputs and targets."""
    generator = torch.Generator().manual_seed(seed + 2**20)
    network = random_network(widths, activation, seed, spread=spread, gains=gains, bias=bias)
    x, y = (torch.randn(samples, width, dtype=DTYPE, generator=generator) for width in (widths[0], widths[-1]))
    return Trial(network, x, y, cut="pre-activation", alter=alter)


def direction_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Compute ``1 − cosine`` of each sample, without cancellation where it is small."""
    sizes = [sample_norm(found), sample_norm(wanted)]
    a, b = (vector / per_sample(size, vector) for vector, size in zip((found, wanted), sizes, strict=True))
    return torch.where(sizes[0] * sizes[1] > 0, 0.5 * sample_norm(a - b).square(), torch.ones_like(sizes[0]))


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Compute ``‖a − b‖ / ‖b‖`` of each sample."""
    return sample_norm(found - wanted) / sample_norm(wanted)
