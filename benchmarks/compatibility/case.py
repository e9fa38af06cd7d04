"""A row of the page: a model, a loss, and what is done around a step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from targetprop.layers.undone import ForwardState

SAMPLES = 5
WIDTH = 6


def first(output: Any) -> Tensor:
    """Take the first tensor of what a module returned."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


def apply(module: nn.Module, h: Tensor) -> Any:
    """Call a module with one tensor."""
    return module(h)


def nothing(model: nn.Module) -> None:
    """Do nothing around a step."""


class Around(nn.Module):
    """A module in the middle of a small model: two layers below it, a head above it.

    Args:
        middle: the module.
        shape: of a sample that it is given.
        use: calls it.
    """

    def __init__(self, middle: nn.Module, shape: tuple[int, ...], use: Callable[[nn.Module, Tensor], Any]) -> None:
        """Fit the head to what the module returns."""
        super().__init__()
        self.shape, self.use = shape, use
        self.stem, self.below = nn.Linear(4, WIDTH), nn.Linear(WIDTH, torch.Size(shape).numel())
        self.middle = middle
        with torch.no_grad():
            before = ForwardState(middle.modules())
            found = first(use(middle, torch.rand(SAMPLES, *shape)))
            before.restore()
        self.head = nn.Linear(found.numel() // SAMPLES, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        h = self.below(torch.tanh(self.stem(x))).reshape(-1, *self.shape)
        return self.head(first(self.use(self.middle, h)).reshape(len(x), -1))


class Plain(nn.Module):
    """Three linear layers, whose output is brought into a shape.

    Args:
        shape: of a sample of the output.
        finish: what is done to it before the loss sees it.
    """

    def __init__(self, shape: tuple[int, ...] = (3,), finish: Callable[[Tensor], Any] | None = None) -> None:
        """Make the layers."""
        super().__init__()
        self.shape, self.finish = shape, finish
        self.stem, self.below = nn.Linear(4, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, torch.Size(shape).numel())

    def forward(self, x: Tensor) -> Any:
        """Run it."""
        h = torch.tanh(self.below(torch.tanh(self.stem(x))))
        out = self.head(h).reshape(-1, *self.shape)
        return out if self.finish is None else self.finish(out)


def inputs() -> Tensor:
    """Draw the input of `Around` and `Plain`."""
    return torch.randn(SAMPLES, 4)


def classes() -> Tensor:
    """Draw labels for three outputs."""
    return torch.randint(0, 3, (SAMPLES,))


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        name: what the page calls it.
        group: the heading that it stands under.
        model: makes the model.
        loss: makes the loss.
        inputs: draws the input.
        labels: draws the labels.
        before: what is done to the model before the engine is made.
        after: what is done to the model when its ``.grad`` is filled.
        optimizer: makes an optimiser; None where ``.grad`` is what counts.
        double: whether it is measured in float64.
        middle: whether the row is about a module in the middle of `Around`.
    """

    name: str
    group: str
    model: Callable[[], nn.Module]
    loss: Callable[[], Any] = nn.CrossEntropyLoss
    inputs: Callable[[], Any] = inputs
    labels: Callable[[], Any] = classes
    before: Callable[[nn.Module], Any] = nothing
    after: Callable[[nn.Module], Any] = nothing
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None
    double: bool = True
    middle: bool = False


def in_the_middle(
    name: str,
    group: str,
    make: Callable[[], nn.Module],
    shape: tuple[int, ...] = (WIDTH,),
    use: Callable[[nn.Module, Tensor], Any] = apply,
    **changes: Any,
) -> Case:
    """Make the row of a module that stands in the middle of a model."""
    return Case(name, group, lambda: Around(make(), shape, use), middle=True, **changes)


def squared(output: Any, y: Any) -> Tensor:
    """Compare the first tensor of an output with zero."""
    return functional.mse_loss(first(output), torch.zeros_like(first(output)))
