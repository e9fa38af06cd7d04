"""The tasks: data, network and how long it is trained."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn

from targetprop.experiments.data.augment import Augmentation
from targetprop.experiments.data.cifar10 import Cifar10
from targetprop.experiments.data.dataset import Dataset
from targetprop.experiments.data.digits import Digits
from targetprop.experiments.data.mnist import Mnist
from targetprop.experiments.networks.dense import Dense
from targetprop.experiments.networks.pooled import LeNet

DEEP = [48] * 16
HELD_OUT = 0.1  # share of the training set that trials of settings are judged by


@dataclass(frozen=True)
class Task:
    """Data, network and length of training.

    Attributes:
        data: names of the data set.
        network: makes the network for the shape of an input and the number of classes.
        epochs: epochs.
        batch: samples a step.
        start: how weights of linear maps begin: "default", "glorot" or "orthogonal"; biases are zero but by default.
        vary: whether images are cropped and flipped.
        accelerate: whether it is worth an accelerator, if there is one.
    """

    data: str
    network: Dense | LeNet
    epochs: int
    batch: int = 128
    start: str = "default"
    vary: bool = False
    accelerate: bool = False

    def build(self, data: Dataset) -> nn.Module:
        """Make the network."""
        model = self.network.build(data.shape, data.classes)
        begin = {"glorot": nn.init.xavier_uniform_, "orthogonal": nn.init.orthogonal_}.get(self.start)
        for module in model.modules() if begin is not None else ():
            if isinstance(module, nn.Linear):
                begin(module.weight)
                nn.init.zeros_(module.bias)
        return model


TASKS = {
    "digits": Task("digits", Dense(widths=[128, 128]), epochs=5, batch=64),
    "mnist": Task("mnist", Dense(widths=[256, 256, 256]), epochs=5),
    "deep": Task("mnist", Dense(widths=DEEP), epochs=2),
    "deep-glorot": Task("mnist", Dense(widths=DEEP), epochs=2, start="glorot"),
    "deep-orthogonal": Task("mnist", Dense(widths=DEEP), epochs=2, start="orthogonal"),
    "lenet": Task("cifar10", LeNet(), epochs=5, vary=True, accelerate=True),
    "lenet-plain": Task("cifar10", LeNet(), epochs=5, accelerate=True),
}
_SOURCES: dict[str, Callable[[str], Dataset]] = {
    "digits": lambda root: Digits().load(),
    "mnist": lambda root: Mnist(root=root).load(),
    "cifar10": lambda root: Cifar10(root=root).load(),
}


@cache
def load(name: str, root: str) -> Dataset:
    """Read a data set, once a process."""
    return _SOURCES[name](root)


def prepare(task: Task, root: str, *, held_out: bool, limit: int | None) -> Dataset:
    """Read the data of a task; with `held_out`, a part of the training set stands in the place of the test set."""
    data = load(task.data, root)
    data = replace(data, augmentation=Augmentation(4, True) if task.vary else Augmentation())
    if held_out:
        order = torch.randperm(len(data.train_x), generator=torch.Generator().manual_seed(0))
        rest, kept = order.split([round((1 - HELD_OUT) * len(order)), len(order) - round((1 - HELD_OUT) * len(order))])
        x, y = data.train_x, data.train_y
        data = replace(data, train_x=x[rest], train_y=y[rest], test_x=x[kept], test_y=y[kept])
    return (
        data if limit is None else replace(data.limited(limit), test_x=data.test_x[:limit], test_y=data.test_y[:limit])
    )
