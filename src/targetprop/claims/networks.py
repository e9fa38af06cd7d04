"""The networks that claims are measured on: random ones of known singular values, and the embedded digits."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.experiments.data import Dataset, Digits
from targetprop.layers import forked_random_states

DTYPE = torch.float64


def leaky() -> nn.Module:
    """Make an activation that is nowhere flat."""
    return nn.LeakyReLU(0.5)


def orthogonal(width: int, generator: torch.Generator) -> Tensor:
    """Draw an orthogonal matrix."""
    return torch.linalg.qr(torch.randn(width, width, dtype=DTYPE, generator=generator))[0]


def with_singular_values(values: Tensor, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Draw a matrix with given singular values."""
    k = len(values)
    return orthogonal(rows, generator)[:, :k] * values @ orthogonal(columns, generator)[:, :k].T


def random_network(
    widths: Sequence[int], activation: Callable[[], nn.Module], seed: int, *, spread: float = 2.0,
    gains: Sequence[float] | None = None, bias: float = 0.1,
) -> nn.Sequential:  # fmt: skip
    """Build a float64 network of ``Linear`` layers with an activation between them, all of full rank."""
    generator = torch.Generator().manual_seed(seed)
    gains = [1.0] * (len(widths) - 1) if gains is None else gains
    layers: list[nn.Module] = []
    for inputs, outputs, gain in zip(widths[:-1], widths[1:], gains, strict=True):
        rank = min(inputs, outputs)
        values = gain * torch.logspace(-0.5, 0.5, rank, base=spread, dtype=DTYPE)
        linear = nn.Linear(inputs, outputs, dtype=DTYPE)
        with torch.no_grad():
            linear.weight.copy_(with_singular_values(values, outputs, inputs, generator))
            linear.bias.copy_(bias * torch.randn(outputs, dtype=DTYPE, generator=generator))
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


@cache
def load_digits() -> Dataset:
    """Load scikit-learn's digits once; see `targetprop.experiments.data.Digits`."""
    return Digits().load()


def digits_network(widths: Sequence[int], seed: int, activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    """Build an untrained float32 network for digits, 64 inputs and 10 outputs, with PyTorch's own initial values."""
    with forked_random_states(seed):
        sizes = [64, *widths]
        layers: list[Any] = [nn.Flatten()]
        for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(inputs, outputs), activation()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], 10))
