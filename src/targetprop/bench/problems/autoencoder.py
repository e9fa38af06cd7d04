"""Deep autoencoders: tanh, a linear code, logits out; cross-entropy and squared error summed over pixels.

The large one is the usual benchmark of second-order methods (Hinton & Salakhutdinov 2006; Martens & Grosse 2015), with
the protocol of LocoProp (Amid et al. 2022): batch 1000, 100 epochs, pixels in [0, 1].
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from targetprop.bench.losses import SigmoidCrossEntropy
from targetprop.bench.problems.problem import Problem, Task, dense, images
from targetprop.experiments.data import Dataset
from targetprop.experiments.errors import CommandError


@dataclass(frozen=True)
class Autoencoder(Problem):
    """784-1000-500-250-30-250-500-1000-784 on MNIST."""

    steps: int = 6000
    batch: int = 1000
    weight_decay: float = 1e-5
    name: ClassVar[str] = "autoencoder"
    widths: ClassVar[tuple[int, ...]] = (784, 1000, 500, 250, 30)

    def network(self, seed: int) -> nn.Sequential:
        """Build encoder and mirrored decoder; see `Problem.network`."""
        return dense((*self.widths, *self.widths[-2::-1]), seed, linear=[len(self.widths) - 1])

    def load(self) -> Task:
        """Flatten the images; see `Problem.load`."""
        data = self._images()
        x, test = data.train_x.flatten(1), data.test_x.flatten(1)
        return Task(x, x, test, test, SigmoidCrossEntropy(), {"squared error": squared_error})

    def _images(self) -> Dataset:
        if self.root is None:
            raise CommandError(f"{self.name} needs MNIST: give the folder that holds it as --root DIR")
        return images(self.root)


@dataclass(frozen=True)
class SmallAutoencoder(Autoencoder):
    """784-500-250-100-30-100-250-500-784 on MNIST, for tuning."""

    steps: int = 1000
    batch: int = 500
    name: ClassVar[str] = "autoencoder-small"
    widths: ClassVar[tuple[int, ...]] = (784, 500, 250, 100, 30)


@dataclass(frozen=True)
class DigitsAutoencoder(Autoencoder):
    """64-48-32-16-8-16-32-48-64 on the embedded digits, for tests."""

    steps: int = 400
    batch: int = 200
    name: ClassVar[str] = "autoencoder-digits"
    widths: ClassVar[tuple[int, ...]] = (64, 48, 32, 16, 8)

    def _images(self) -> Dataset:
        return images(None)


def squared_error(output: Tensor, y: Tensor) -> Tensor:
    """Compute the squared error of the pixels, summed over pixels."""
    return (torch.sigmoid(output) - y).square().sum() / len(y)
