r"""One network on one batch, on which a claim takes steps of target propagation and compares them with dense algebra.

>>> import torch, targetprop as tp
>>> from torch import nn
>>> from targetprop.diagnostics import DenseInverse
>>> x, y = torch.ones(2, 3), torch.zeros(2, 1)
>>> trial = Trial(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)), x, y)
>>> changes = trial.targets(1e-3, DenseInverse(), tp.Difference())
>>> [tuple(change.shape) for change in changes]
[(2, 3), (2, 1)]
>>> direction_error(torch.tensor([[1.0, 0.0]]), torch.tensor([[-2.0, 0.0]]))
tensor([2.])
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import targetprop as tp
from targetprop.chain import Cut
from targetprop.claims.altered import Alter, Altered, unaltered
from targetprop.decoders import Objective
from targetprop.forward import Record, run_forward
from targetprop.inversion import Inversion, per_sample, sample_norm
from targetprop.output_target import Loss
from targetprop.targets import Propagation, propagate
from targetprop.updates import Update


@dataclass(frozen=True, eq=False)
class Trial:
    """A network, a batch and a loss; every method leaves them as they were.

    Attributes:
        network: the network.
        x: its input, shape ``(n, …)``.
        y: what the loss compares its output with.
        loss: summed over the batch unless you say otherwise, so that samples have the same Δ alone and together.
        cut: where layers begin and end.
        alter: what becomes of every inverse.
    """

    network: nn.Sequential
    x: Tensor
    y: Tensor
    loss: Loss = nn.MSELoss(reduction="sum")
    cut: Cut = "post-activation"
    alter: Alter = unaltered

    def sample(self, index: int) -> "Trial":
        """Take one sample by itself.

        Args:
            index: which one.

        Returns:
            The trial on a batch of one.
        """
        rows = slice(index, index + 1)
        return replace(self, x=self.x[rows], y=self.y[rows])

    def record(self) -> Record:
        """Run the network.

        Returns:
            The forward pass.
        """
        return run_forward(tp.build_chain(self.network, self.cut), self.x)

    def targets(
        self, beta: float, decoder: Objective, inversion: Inversion, propagation: Propagation = "layerwise"
    ) -> list[Tensor]:
        """Carry the output's change down.

        Args:
            beta: size of the output's change, ``Δ_L = −β ∂C/∂h_L``.
            decoder: the inverses, before they are altered.
            inversion: the rule.
            propagation: "layerwise", "joint" or "composite".

        Returns:
            ``Δ_1 … Δ_L``.
        """
        engine = self._engine(beta, decoder, inversion, propagation, tp.Gradient())
        record = self.record()
        with torch.no_grad():
            delta = engine.method.output_target(record.output, self.y, self.loss).delta
            return propagate(record, engine.bank, delta, inversion, propagation, measure=False).deltas

    def steps(
        self,
        beta: float,
        decoder: Objective,
        inversion: Inversion,
        update: Update,
        propagation: Propagation = "layerwise",
    ) -> list[Tensor]:
        """Take the whole step that the engine's ``.grad`` asks for, without changing the network.

        Args:
            beta: size of the output's change.
            decoder: the inverses, before they are altered.
            inversion: the rule.
            update: from targets to ``.grad``.
            propagation: "layerwise", "joint" or "composite".

        Returns:
            ``−β .grad`` of each layer, flattened in the order of ``layer.parameters()``.
        """
        for parameter in self.network.parameters():
            parameter.grad = None
        self._engine(beta, decoder, inversion, propagation, update).backward(self.x, self.y)
        layers = [list(layer.parameters()) for layer in tp.build_chain(self.network, self.cut).layers]
        found = [torch.cat([-beta * p.grad.flatten() for p in layer if p.grad is not None]) for layer in layers]
        for parameter in self.network.parameters():
            parameter.grad = None
        return found

    def _engine(
        self, beta: float, decoder: Objective, inversion: Inversion, propagation: Propagation, update: Update
    ) -> tp.TargetPropagation:
        method = tp.Method(
            cut=self.cut,
            output_target=tp.GradientStep(beta),
            decoder=Altered(decoder, self.alter),
            inversion=inversion,
            propagation=propagation,
            update=update,
        )
        return tp.TargetPropagation(self.network, self.loss, example_input=self.x, method=method, seed=0)


def direction_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Compute ``1 − cosine`` of each sample, without cancellation where it is small.

    Args:
        found: shape ``(n, …)``.
        wanted: same shape.

    Returns:
        ``½ ‖a/‖a‖ − b/‖b‖‖²``, shape ``(n,)``; 1 where one of the two is zero.
    """
    sizes = [sample_norm(found), sample_norm(wanted)]
    a, b = (vector / per_sample(size, vector) for vector, size in zip((found, wanted), sizes, strict=True))
    return torch.where(sizes[0] * sizes[1] > 0, 0.5 * sample_norm(a - b).square(), torch.ones_like(sizes[0]))


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Compute ``‖a − b‖ / ‖b‖`` of each sample.

    Args:
        found: ``a``, shape ``(n, …)``.
        wanted: ``b``, same shape, no sample of it zero.

    Returns:
        Shape ``(n,)``.
    """
    return sample_norm(found - wanted) / sample_norm(wanted)
