"""A small convolutional classifier of CIFAR-10, without crops or flips: what is compared is how fast it fits."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from targetprop.bench.losses import SoftmaxCrossEntropy
from targetprop.bench.problems.problem import Problem, Task, accuracy
from targetprop.experiments.data import Cifar10
from targetprop.experiments.errors import CommandError
from targetprop.experiments.networks import LeNet
from targetprop.layers import forked_random_states


@dataclass(frozen=True)
class Convolutions(Problem):
    """Two convolutions 5×5 with max pooling and a hidden layer of 512 units, on CIFAR-10."""

    batch: int = 128
    name: ClassVar[str] = "lenet"

    def network(self, seed: int) -> nn.Module:
        """Build the classifier with PyTorch's initial values; see `Problem.network`."""
        with forked_random_states(seed):
            return LeNet().build((3, 32, 32), 10)

    def load(self) -> Task:
        """Read and normalise the images; see `Problem.load`."""
        if self.root is None:
            raise CommandError(f"{self.name} needs CIFAR-10: give the folder that holds it as --root DIR")
        data = Cifar10(root=self.root, crop=0, flip=False).load()
        return Task(data.train_x, data.train_y, data.test_x, data.test_y, SoftmaxCrossEntropy(), {"accuracy": accuracy})
