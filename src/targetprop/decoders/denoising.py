"""Denoising reconstruction ``‖g(f(h+ε)) − (h+ε)‖²`` (Lee 2015, arXiv:1412.7525).

Lee's decoders end in the network's own nonlinearity; ours are affine in ``h_l`` unless `activation` says otherwise.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from targetprop.decoders.bank import Bank
from targetprop.decoders.objective import Learned, Noise
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
        layer = record.layers[index]
        clean = layer.x + noise.like(layer.x)
        with torch.no_grad():
            seen = layer.f(clean)
        rebuilt = bank.inverse(index, record)(seen)
        return functional.mse_loss(rebuilt, clean, reduction="sum") / len(clean)
