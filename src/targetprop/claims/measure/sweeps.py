r"""Sweeps over all layers of an invertible network: the error of every layer's target after each sweep, and its bound.

``u_l`` is the change of the input of layer ``l + 1``, of ``L`` layers, ``l = 1 … L − 1``; ``u*_l`` is the fixed point.
"""

from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

import targetprop as tp
from targetprop.claims.altered import Alter, Altered
from targetprop.claims.measure.decay import lipschitz_on_ball
from targetprop.claims.measure.pairs import decoder_matrix
from targetprop.claims.networks import DTYPE, random_network
from targetprop.decoders import Bank
from targetprop.diagnostics import layer_jacobian
from targetprop.inversion import sample_norm
from targetprop.layers import LayerRecord, Record
from targetprop.targets import propagate

Order = Literal["joint", "top-down"]
_SCALE = 0.25  # of inputs and of what is asked for: tanh is bent and not flat
_FAR = tp.InputSpace(steps=3_000, tolerance=1e-13)


@dataclass(frozen=True, eq=False)
class Task:
    """A network's pass, its decoders, and the fixed point of inverting layer by layer."""

    record: Record
    bank: Bank
    delta: Tensor  # ``Δ_L``, shape of the output
    solution: list[Tensor]  # ``u*_1 … u*_{L−1}``, shape ``(n, d)`` each
    matrices: list[Tensor]  # ``J_g`` of the inverted layers, which are affine, shape ``(n, d, d)`` each

    @property
    def start(self) -> Tensor:
        """How far each layer has to go, ``‖u*_l‖``, shape ``(L − 1, n)``."""
        return torch.stack([sample_norm(u) for u in self.solution])

    def slowest(self) -> Tensor:
        """Find the largest eigenvalue of ``I − J_g J_f`` at the fixed point over layers, in size, shape ``(n,)``."""
        found = []
        for layer, u, G in zip(self.record.inverted, self.solution, self.matrices, strict=True):
            J = layer_jacobian(replace(layer, x=layer.x + u))
            found.append(torch.linalg.eigvals(torch.eye(G.shape[1], dtype=DTYPE) - G @ J).abs().amax(1))
        return torch.stack(found).amax(0)


@dataclass(frozen=True, eq=False)
class Sweeps:
    """Some sweeps, watched."""

    iterates: list[list[Tensor]]  # ``u_l`` by sweep, from 0 on, and by layer
    errors: Tensor  # ``‖u_l − u*_l‖``, shape ``(sweeps + 1, L − 1, n)``
    bound: Tensor  # what the triangular system allows, likewise

    @property
    def whole(self) -> Tensor:
        """The error of all layers together, shape ``(sweeps + 1, n)``."""
        return self.errors.square().sum(1).sqrt()

    def early(self, start: Tensor) -> float:
        """Largest ``‖u_l‖ / ‖u*_l‖`` of a layer that the top has not reached yet: ``l < L − k`` after ``k`` sweeps."""
        layers = len(start)
        moved = [
            float((sample_norm(self.iterates[k][index]) / start[index]).max())
            for k in range(min(layers, len(self.iterates)))
            for index in range(layers - k)
        ]
        return max(moved, default=0.0)

    def arrived(self, start: Tensor) -> float:
        """Smallest ``‖u_1‖ / ‖u*_1‖`` after ``L − 1`` sweeps."""
        return float((sample_norm(self.iterates[len(start)][0]) / start[0]).min())

    def against_bound(self, floor: float) -> float:
        """Largest error over its bound, of all layers, samples and sweeps ``≥ 1`` at which it is above the floor."""
        above = self.errors[1:] > floor * self.errors[0].amax(0)
        return float((self.errors[1:] / self.bound[1:])[above].max()) if bool(above.any()) else float("nan")

    def last(self, floor: float) -> Tensor:
        """Find the last sweep whose error, that of all layers, is above the floor, by sample, shape ``(n,)``."""
        return ((self.whole > floor * self.whole[0]).long().cumprod(0).sum(0) - 1).clamp_min(1)

    def factor(self, at: Tensor) -> Tensor:
        """Measure by how much a sweep shrinks the error, from the sweep before to the given one of each sample."""
        return (self.whole.gather(0, at[None]) / self.whole.gather(0, at[None] - 1)).squeeze(0)


@dataclass(frozen=True, eq=False)
class _Watched(LayerRecord):
    """A layer that keeps where it is evaluated."""

    seen: list[Tensor] = field(default_factory=list)

    def f(self, x: Tensor) -> Tensor:
        self.seen.append(x - self.x)
        return super().f(x)


def pose(layers: int, width: int, damping: float, samples: int, seed: int, alter: Alter) -> Task:
    """Draw an invertible network of layers ``f(h) = W tanh(h) + b``, let it learn inverses, and ask for a change."""
    generator = torch.Generator().manual_seed(seed + 1)
    network = random_network([width] * (layers + 1), nn.Tanh, seed)
    x, change = (_SCALE * torch.randn(samples, width, dtype=DTYPE, generator=generator) for _ in range(2))
    # Probes so many that inverses are those of the weights, and what is measured is the iteration.
    decoder = Altered(tp.WeightInverse(damping=damping, warmup=60, share=100.0, activity=0.0), alter)
    method = tp.Method(cut="pre-activation", decoder=decoder)
    engine = tp.TargetPropagation(network, nn.MSELoss(), example_input=x, method=method, seed=seed)
    for _ in range(12):
        engine.train_decoders(x)
    record = engine.record(x)
    with torch.no_grad():
        moved = reduce(lambda h, layer: layer.f(h), record.inverted, record.inverted[0].x + change)
        delta = moved - record.output  # what the network can do
        solution = propagate(record, engine.bank, delta, _FAR, "layerwise").deltas[:-1]
        matrices = [decoder_matrix(layer, engine.bank.inverse(layer)) for layer in record.inverted]
    return Task(record, engine.bank, delta, solution, matrices)


def difference_targets(task: Task) -> list[Tensor]:
    """Propagate the change once, layer by layer."""
    with torch.no_grad():
        return propagate(task.record, task.bank, task.delta, tp.Difference(), "layerwise").deltas[:-1]


def contraction_factors(task: Task) -> Tensor:
    """Find ``ρ_l``, the Lipschitz constant of ``g∘f − id`` on the ball around the fixed point that ``x₀`` lies on.

    Returns:
        Shape ``(L − 1, n)``.
    """
    found = []
    with torch.no_grad():
        for layer, u, G in zip(task.record.inverted, task.solution, task.matrices, strict=True):

            def deviation(x: Tensor, layer: LayerRecord = layer, G: Tensor = G) -> Tensor:
                return (G @ layer.f(x).unsqueeze(2)).squeeze(2) - x

            found.append(lipschitz_on_ball(deviation, [layer.x], layer.x + u))
    return torch.stack(found)


def sweep(task: Task, order: Order, sweeps: int, rho: Tensor) -> Sweeps:
    """Sweep, and compare with the fixed point.

    Args:
        task: what is to be inverted.
        order: all layers at once, or from the top down.
        sweeps: how many.
        rho: ``ρ_l``, shape ``(L − 1, n)``.

    Returns:
        Errors and bounds.
    """
    layers = [_Watched(**vars(layer)) for layer in task.record.inverted]
    record = replace(task.record, layers=(task.record.layers[0], *layers))
    rule = tp.InputSpace(steps=sweeps, tolerance=0.0)
    with torch.no_grad():
        propagate(record, task.bank, task.delta, rule, order)
    start = [torch.zeros_like(u) for u in task.solution]
    iterates = [start, *([layer.seen[k] for layer in layers] for k in range(len(layers[0].seen)))]
    errors = torch.stack(
        [torch.stack([sample_norm(u - v) for u, v in zip(found, task.solution, strict=True)]) for found in iterates]
    )
    gains = torch.stack([torch.linalg.matrix_norm(G, ord=2) for G in task.matrices])
    return Sweeps(iterates, errors, _bound(errors[0], rho, gains, order, len(iterates)))


def _bound(start: Tensor, rho: Tensor, gains: Tensor, order: Order, count: int) -> Tensor:
    """Iterate ``a_l ← ρ_l a_l + ‖J_{g_{l+1}}‖ a_{l+1}``, the triangular system, from the errors at the start."""
    bounds = [start]
    for _ in range(count - 1):
        old, new = bounds[-1], list(rho * bounds[-1])
        for i in reversed(range(len(start) - 1)):
            new[i] = new[i] + gains[i] * (old[i + 1] if order == "joint" else new[i + 1])
        bounds.append(torch.stack(new))
    return torch.stack(bounds)


def apart(joint: Sweeps, top_down: Sweeps, start: Tensor) -> float:
    """Largest ``‖v_l^k − u_l^{k+L−1−l}‖ / ‖u*_l‖``, ``u`` of joint sweeps and ``v`` of those from the top down.

    What joint sweeps bring a layer is what sweeps from the top down brought it as many sweeps earlier as there are
    layers above it.
    """
    layers, found = len(start), 0.0
    for i in range(layers):
        later = layers - 1 - i
        for v, u in zip(top_down.iterates, joint.iterates[later:], strict=False):
            found = max(found, float((sample_norm(v[i] - u[i]) / start[i]).max()))
    return found


def sweeps_to(sweeps: Sweeps, share: float) -> int | None:
    """Count sweeps until the error of all layers has shrunk to a share, for every sample; None if it has not."""
    reached = (sweeps.whole <= share * sweeps.whole[0]).all(1).nonzero()
    return int(reached[0]) if len(reached) else None
