"""Inputs and outputs other than one tensor: several, named, a dictionary, a dataclass, a loss among them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import Case, floats, integers, squared_error


class EarlyExit(nn.Module):
    """A classifier with a second head halfway, both in a dictionary."""

    def __init__(self):
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.exit1 = nn.Linear(6, 4)
        self.stage2 = nn.Sequential(nn.Conv2d(6, 10, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.exit2 = nn.Linear(10, 4)

    def forward(self, x):
        x = self.stage1(x)
        early = self.exit1(x.mean((2, 3)))
        x = self.stage2(x)
        return {"early": early, "final": self.exit2(x.mean((2, 3)))}


class ImageAndVector(nn.Module):
    """An image and measurements that belong to it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2)
        self.image = nn.Linear(6 * 3 * 3, 10)
        self.vector = nn.Linear(5, 6)
        self.fc = nn.Linear(16, 4)

    def forward(self, image, vector):
        a = F.relu(self.conv(image)).flatten(1)
        h = torch.cat((F.relu(self.image(a)), F.relu(self.vector(vector))), dim=1)
        return self.fc(h)


class Siamese(nn.Module):
    """The same encoder for both inputs, compared."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 6))
        self.out = nn.Linear(12, 1)

    def forward(self, a, b):
        u, v = self.encoder(a), self.encoder(b)
        return self.out(torch.cat([(u - v).abs(), u * v], dim=1)).squeeze(-1)


@dataclass
class Output:
    """What a model knows after its pass."""

    logits: Tensor
    hidden: Tensor


class DataclassNet(nn.Module):
    """A classifier that returns a dataclass."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU())
        self.head = nn.Linear(10, 4)

    def forward(self, x):
        hidden = self.body(x)
        return Output(logits=self.head(hidden), hidden=hidden)


class MultiTask(nn.Module):
    """Softly routed experts, two tasks, and a loss for the balance between the experts."""

    def __init__(self, experts=3, dim=10):
        super().__init__()
        self.router = nn.Linear(8, experts)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(8, dim), nn.ReLU()) for _ in range(experts)])
        self.classify, self.regress = nn.Linear(dim, 4), nn.Linear(dim, 1)

    def forward(self, x):
        gates = self.router(x).softmax(dim=-1)
        outs = torch.stack([expert(x) for expert in self.experts], dim=1)
        h = (gates.unsqueeze(-1) * outs).sum(dim=1)
        load = gates.mean(dim=0)
        balance = len(self.experts) * (load * load).sum()
        return self.classify(h), self.regress(h).squeeze(1), balance


def exits_loss(out, y):
    """Weigh the losses of both exits."""
    return 0.3 * F.cross_entropy(out["early"], y) + F.cross_entropy(out["final"], y)


def binary_loss(out, y):
    """Binary cross-entropy in the output's own precision."""
    return F.binary_cross_entropy_with_logits(out, y.to(out.dtype))


def tasks_loss(out, y):
    """Sum the losses of both tasks and the balance."""
    logits, value, balance = out
    return F.cross_entropy(logits, y[0]) + 0.5 * squared_error(value, y[1]) + 0.1 * balance


def _classes():
    """Draw six classes of four."""
    return integers(4, 6)


def _vectors():
    """Draw six vectors of length eight."""
    return floats(6, 8)


CASES = (
    Case(
        "early_exit",
        EarlyExit,
        lambda: floats(6, 3, 8, 8),
        _classes,
        exits_loss,
        about="returns a dictionary of two outputs that share a trunk",
    ),
    Case(
        "image_and_vector",
        ImageAndVector,
        lambda: (floats(6, 3, 8, 8), floats(6, 5, seed=3)),
        _classes,
        F.cross_entropy,
        about="two positional inputs",
    ),
    Case(
        "siamese",
        Siamese,
        lambda: {"a": _vectors(), "b": floats(6, 8, seed=3)},
        lambda: integers(2, 6),
        binary_loss,
        about="keyword inputs a and b, one encoder called twice",
    ),
    Case(
        "dataclass_output",
        DataclassNet,
        _vectors,
        _classes,
        lambda out, y: F.cross_entropy(out.logits, y),
        about="returns a dataclass of which the loss takes .logits",
    ),
    Case(
        "mixture_of_experts",
        MultiTask,
        _vectors,
        lambda: (_classes(), floats(6, seed=4)),
        tasks_loss,
        about="returns two tasks' outputs and a scalar loss over the batch",
    ),
)
