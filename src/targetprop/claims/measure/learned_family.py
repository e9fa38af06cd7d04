r"""Decoders trained by ``ℓ(w, λ)``, and their closed form ``J_fᵀ (w J_f J_fᵀ + λ I)⁻¹``, layer by layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import targetprop as tp
from targetprop.claims.altered import Alter, Altered
from targetprop.claims.networks import DTYPE, random_network
from targetprop.diagnostics import damped_inverse, layer_jacobian
from targetprop.layers import Record

SHAPES = ("8 → 5", "5 → 5", "5 → 8")
_WIDTHS = (8, 8, 5, 5, 8)  # the first layer needs no decoder
_SPREAD = 4.0
_MOMENTUM = 0.9
_SAMPLES = 2048


@dataclass(frozen=True)
class LearnedPair:
    """What training left of the decoders of three layers, at one ``(w, λ)``."""

    w: float
    damping: float
    errors: tuple[float, ...]  # ``‖J_g − J_g*‖ / ‖J_g*‖`` of each layer
    singular: tuple[float, ...]  # singular values ``σ`` of each layer's Jacobian
    gains: tuple[float, ...]  # ``vᵀ J_g u`` for each of its singular vectors; the closed form is ``σ / (wσ² + λ)``

    @property
    def name(self) -> str:
        """The pair in words."""
        return f"({self.w:g}, {self.damping:g})"

    @property
    def curve(self) -> dict[str, Any]:
        """What the figure draws, as plain values."""
        curve = {"w": self.w, "damping": self.damping, "name": self.name}
        return {**curve, "singular": list(self.singular), "gains": list(self.gains)}


def learn_pair(
    w: float, damping: float, seed: int, alter: Alter, updates: int, activation: Callable[[], nn.Module] = nn.Identity
) -> LearnedPair:
    """Train the decoders of layers that shrink, keep and widen their input, on noise alone."""
    net = random_network(_WIDTHS, activation, seed, spread=_SPREAD)
    x = torch.randn(_SAMPLES, _WIDTHS[0], dtype=DTYPE, generator=torch.Generator().manual_seed(seed + 2**20))
    curvature = 2 * (w * _SPREAD + damping)  # of the loss, at most
    rate = 2 * (1 - _MOMENTUM) / curvature
    objective = tp.DifferenceReconstruction(w=w, damping=damping, activation="transpose", noise=0.01)
    engine = tp.TargetPropagation(
        net, nn.MSELoss(), example_input=x, method=tp.Method(decoder=Altered(objective, alter)), seed=seed,
        decoder_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=_MOMENTUM),
    )  # fmt: skip
    optimizer = engine.decoder_optimizer
    assert optimizer is not None
    # A constant rate for half of the time, then down to a hundredth of it, averages the noise.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 0.01 ** max(0, 2 * k / updates - 1))
    for _ in range(updates):
        engine.train_decoders(x)
        schedule.step()
    record = engine.record(x[:8])
    return _compare(w, damping, record, [_decoder(engine, i, record) for i in (1, 2, 3)])


def _decoder(engine: tp.TargetPropagation, index: int, record: Record) -> Tensor:
    """Probe a decoder by unit changes, sample by sample."""
    h, g = record.layers[index].h, engine.bank.inverse(record.layers[index])
    units = torch.eye(h.shape[1], dtype=h.dtype)
    with torch.no_grad():
        return torch.stack([g.difference(h, unit.expand_as(h)) for unit in units], dim=2)


def _compare(w: float, damping: float, record: Record, decoders: list[Tensor]) -> LearnedPair:
    errors, singular, gains = [], [], []
    for layer, found in zip(record.layers[1:], decoders, strict=True):
        J = layer_jacobian(layer)
        best = damped_inverse(J, w, damping)
        U, S, Vh = torch.linalg.svd(J, full_matrices=False)
        # Without damping nothing is asked of the decoder for changes that the layer cannot make.
        seen = found @ U @ U.mT if damping == 0 else found
        errors.append(float((seen - best).norm() / best.norm()))
        singular += S[0].tolist()
        gains += (Vh @ found @ U).diagonal(dim1=1, dim2=2)[0].tolist()
    return LearnedPair(w, damping, tuple(errors), tuple(singular), tuple(gains))
