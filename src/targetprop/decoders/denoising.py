"""Denoising reconstruction ``‖g(f(h+ε)) − (h+ε)‖²`` (Lee 2015, arXiv:1412.7525).

Lee's decoders end in the network's own nonlinearity; ours are affine in ``h_l`` unless `activation` says otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from targetprop.decoders.bank import Bank
from targetprop.decoders.objective import Learned, Noise, Signal
from targetprop.layers import LayerRecord, Record


@dataclass(frozen=True)
class Denoising(Learned):
    """Learn to reconstruct a layer's perturbed input from its output.

    Attributes:
        activation: see `Learned`.
        noise: see `Learned`; 0 is plain reconstruction.
        updates: see `Learned`.
        share: see `Learned`.
        lr: see `Learned`.
        optimizer: see `Learned`.
    """

    name: ClassVar[str] = "denoising"
    least_noise: ClassVar[float] = 0.0

    def layer_loss(self, bank: Bank, layers: Sequence[LayerRecord], record: Record, noise: Noise) -> Tensor:
        """Compute the squared reconstruction error; see `Learned.layer_loss`."""
        return _error(bank, layers[0], noise)[1].square().sum() / max(len(record.output), 1)

    def signal(self, bank: Bank, layers: Sequence[LayerRecord], record: Record, noise: Noise) -> Signal:
        """Start autograd at the reconstruction, whose gradient is known; see `Learned.signal`."""
        rebuilt, error = _error(bank, layers[0], noise)
        error, n = error.detach(), max(len(record.output), 1)  # a process may hold no samples
        return Signal(torch.linalg.vector_norm(error).square() / n, rebuilt, error * (2 / n))


def _error(bank: Bank, layer: LayerRecord, noise: Noise) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        clean = layer.x + noise.like(layer.x)
        seen = layer.f(clean)
    rebuilt = bank.inverse(layer)(seen)
    return rebuilt, rebuilt - clean
