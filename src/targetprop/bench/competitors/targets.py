"""Target propagation: named compositions of the library's parts, with a plain optimiser on top."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

import targetprop as tp
from targetprop.bench.competitors.competitor import MOMENTUM, Competitor, GradientStepper, Range, Stepper
from targetprop.bench.losses import SampledLoss
from targetprop.experiments.errors import suggest


def _least_squares(damping: float) -> tp.LeastSquares:
    update = tp.method("least-squares").update
    assert isinstance(update, tp.LeastSquares)
    return replace(update, damping=damping)


# What a composition is told is the damping of its local update.
COMPOSITIONS: dict[str, Callable[[float], tp.Method]] = {
    "least-squares": lambda damping: tp.method("least-squares", update=_least_squares(damping)),
    # The same targets from exact transposes, which read the forward weights: what is lost to learning them.
    "exact-transposes": lambda damping: tp.Method(decoder=tp.Exact(w=0.0, damping=1.0), update=_least_squares(damping)),
}


@dataclass(frozen=True)
class TargetProp(Competitor):
    """A composition and the optimiser that takes its steps."""

    lr: float = 0.25
    damping: float = 0.003  # damping of the local update
    momentum: float = 0.5  # share of the last change, or of Adam's first moment, that is kept
    composition: str = "least-squares"  # a name from `COMPOSITIONS`
    optimizer: Literal["sgd", "adam"] = "sgd"  # what takes the steps
    space: ClassVar = {"lr": Range(2.5e-2, 2.5), "damping": Range(3e-4, 3e-2), "momentum": MOMENTUM}

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.composition not in COMPOSITIONS:
            raise ValueError(f"unknown composition {self.composition!r}; {suggest(self.composition, COMPOSITIONS)}")

    def start(self, network: nn.Module, loss: SampledLoss, example: Tensor, seed: int) -> Stepper:
        """Build the engine; see `Competitor.start`."""
        method = COMPOSITIONS[self.composition](self.damping)
        engine = tp.TargetPropagation(network, loss, example_input=example, method=method, seed=seed)
        if self.optimizer == "adam":
            optimizer = torch.optim.Adam(network.parameters(), self.lr, (self.momentum, 0.999))
        else:
            optimizer = torch.optim.SGD(network.parameters(), self.lr, momentum=self.momentum)
        return GradientStepper(lambda x, y: engine.backward(x, y).loss, [optimizer])


@dataclass(frozen=True)
class Kronecker(Competitor):
    """The method `kronecker`, whose update is a step of SGD at rate 1."""

    lr: float = 1.0
    damping: float = tp.Kronecker.damping  # of the inputs' factor
    output_damping: float = tp.Kronecker.output_damping  # of the outputs' factor
    space: ClassVar = {"lr": Range(0.3, 3.0), "damping": Range(3e-3, 0.3), "output_damping": Range(0.05, 5.0)}

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        self._update()

    def _update(self) -> tp.Kronecker:
        return tp.Kronecker(damping=self.damping, output_damping=self.output_damping)

    def start(self, network: nn.Module, loss: SampledLoss, example: Tensor, seed: int) -> Stepper:
        """Build the engine; see `Competitor.start`."""
        method = tp.method("kronecker", update=self._update())
        engine = tp.TargetPropagation(network, loss, example_input=example, method=method, seed=seed)
        optimizer = torch.optim.SGD(network.parameters(), self.lr)
        return GradientStepper(lambda x, y: engine.backward(x, y).loss, [optimizer])
