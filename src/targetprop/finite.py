"""What keeps numbers that are not finite out of a step, with few transfers to the host.

Each tensor is seen through its Euclidean norm: where two norms are finite, so is every product of the two tensors. One
number is read from the device, for however many layers; which tensor it was is looked for only if it is not finite.

>>> not_finite([Look("the loss is not a number", (torch.tensor(2.0),))], Peers()) is None
True
>>> infinite = torch.tensor([1.0, torch.inf])
>>> not_finite([Look("fine", (torch.ones(2),)), Look("{} is infinite", (infinite,), "h")], Peers())
'h is infinite'
"""

from collections.abc import Iterable
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

from targetprop.peers import Peers

BAD_INPUT = "the input holds NaN or infinite values, or some too large to be squared; clean the data before training"
BAD_OUTPUT = "{} returns NaN or infinite values; lower the learning rate or load an earlier checkpoint"
BAD_LOSS = "the loss or its gradient is NaN or infinite though the outputs are finite; check the labels and the loss"
BAD_TARGET = "the target of layer {} is NaN or infinite; lower output_target.beta"
BAD_GRADIENT = "the gradient of {} is NaN or infinite; look for roots, logarithms and divisions at zero"


class Look:
    """Tensors that must be finite, of which nothing but their norms is kept.

    Args:
        problem: what is wrong if they are not, with a pair of braces for the name.
        values: the tensors; integers are finite.
        name: whose they are.
    """

    def __init__(self, problem: str, values: Iterable[Tensor], name: str = "") -> None:
        """Measure the tensors."""
        self.problem, self.name = problem, name
        self.norms = [_norm(value.detach()) for value in values if value.is_floating_point()]

    @property
    def sentence(self) -> str:
        """The problem with the name."""
        return self.problem.format(self.name)


def not_finite(looks: Iterable[Look], peers: Peers) -> str | None:
    """Look for numbers that are not finite.

    Args:
        looks: what to look at.
        peers: the processes that decide together, each with looks of its own.

    Returns:
        None if all is finite in all processes; otherwise the first problem.
    """
    looks = list(looks)
    if isfinite(peers.sum_norms([norm for look in looks for norm in look.norms])):
        return None
    first = next((look for look in looks if not all(isfinite(float(norm)) for norm in look.norms)), None)
    problem = peers.first_problem(None if first is None else (_turn(first), first.sentence))
    return problem or "the numbers of the step are too large to be summed; scale the inputs down"


def _turn(look: Look) -> int:
    """Where a look stands in a step: what fails early in one process fails later in others."""
    early = (BAD_INPUT, BAD_OUTPUT, BAD_LOSS, BAD_TARGET)
    return early.index(look.problem) if look.problem in early else len(early)


def _norm(values: Tensor) -> Tensor:
    values = values if values.layout == torch.strided else values.coalesce().values()
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    return torch.linalg.vector_norm(values, dtype=dtype) if values.dim() else values.to(dtype)


class RunningStatistics:
    """Copies of the running statistics that a forward pass in training mode changes."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """Copy them."""
        changing = [m for m in modules if isinstance(m, _NormBase) and m.training and m.track_running_stats]
        self._before = [(buffer, buffer.clone()) for module in changing for buffer in module.buffers(recurse=False)]

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back."""
        for buffer, before in self._before:
            buffer.copy_(before)


def check_digits(parameters: Iterable[Tensor], what: str) -> None:
    """Refuse half precision and complex numbers where systems of equations are solved.

    Args:
        parameters: the parameters of a model.
        what: what solves, for the message.

    Raises:
        ValueError: one has fewer digits than float32, or is complex.
    """
    for p in parameters:
        if p.is_complex():
            raise ValueError(
                f"{what} needs real parameters, and the model has {p.dtype}; let it hold real and imaginary parts"
            )
        if p.is_floating_point() and torch.finfo(p.dtype).bits < 32:
            raise ValueError(
                f"{what} needs parameters in float32 or float64, and the model has {p.dtype}; keep them in float32 and"
                " compute under torch.autocast with bfloat16, or choose a method such as 'dtp'"
            )
