"""Denoising reconstruction ``‖g(f(h+ε)) − (h+ε)‖²`` (Lee 2015, arXiv:1412.7525).

Lee's decoders end in the network's own nonlinearity; ours are affine in ``h_l`` unless `activation` says otherwise.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from targetprop.decoders.bank import Bank
from targetprop.decoders.objective import Learned, Noise, Signal
from targetprop.forward import Record


@dataclass(frozen=True)
class Denoising(Learned):
    """Learn to reconstruct a layer's perturbed input from its output.

    Attributes:
        activation: see `Learned`.
        noise: see `Learned`.
        updates: see `Learned`.
        share: see `Learned`.
        lr: see `Learned`.
        optimizer: see `Learned`.
    """

    name: ClassVar[str] = "denoising"

    def layer_loss(self, bank: Bank, index: int, record: Record, noise: Noise) -> Tensor:
        """Compute the squared reconstruction error; see `Learned.layer_loss`."""
        return self._error(bank, index, record, noise)[1].square().sum() / max(len(record.output), 1)

    def signal(self, bank: Bank, index: int, record: Record, noise: Noise) -> Signal:
        """Start autograd at the reconstruction, whose gradient is known; see `Learned.signal`."""
        rebuilt, error = self._error(bank, index, record, noise)
        error, n = error.detach(), max(len(record.output), 1)  # a rank may hold no samples
        return Signal(torch.linalg.vector_norm(error).square() / n, rebuilt, error * (2 / n))

    def _error(self, bank: Bank, index: int, record: Record, noise: Noise) -> tuple[Tensor, Tensor]:
        layer = record.layers[index]
        with torch.no_grad():
            clean = layer.x + noise.like(layer.x)
            seen = layer.f(clean)
        rebuilt = bank.inverse(index, record)(seen)
        return rebuilt, rebuilt - clean
