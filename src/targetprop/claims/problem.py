"""A network and a batch, and what back-propagation and a method ask of each layer there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import targetprop as tp
from targetprop.claims.networks import DTYPE, random_network
from targetprop.diagnostics import activations
from targetprop.forward import Record, run_forward
from targetprop.targets import propagate


@dataclass(frozen=True)
class Problem:
    """A network of linear layers, cut as in the paper, ``f(h) = Wσ(h) + b``, and a batch with squared error.

    Attributes:
        net: the network.
        x: its input.
        y: what its output should be.
    """

    net: nn.Sequential
    x: Tensor
    y: Tensor

    def forward(self) -> Record:
        """Run the network.

        Returns:
            The forward pass, with the outputs of modules inside layers.
        """
        return run_forward(tp.build_chain(self.net, "pre-activation"), self.x, keep_inner=True)

    def backprop(self) -> list[Tensor]:
        """Take the gradient by ``loss.backward()``.

        Returns:
            One flat gradient per layer.
        """
        self.net.zero_grad()
        functional.mse_loss(self.net(self.x), self.y).backward()
        return self._gradients()

    def backprop_changes(self) -> list[Tensor]:
        """Differentiate each sample's loss in the activations.

        Returns:
            ``−∂C/∂h_l`` for ``l = 1…L``, each of shape ``(n, d_l)``.
        """
        values = activations(self.forward())
        gradients = torch.autograd.grad(functional.mse_loss(values[-1], self.y), values[1:])
        return [-len(self.x) * gradient for gradient in gradients]

    def updates(self, method: tp.Method) -> list[Tensor]:
        """Take ``.grad`` by target propagation.

        Args:
            method: the recipe, with the same cut.

        Returns:
            One flat gradient per layer.
        """
        self.net.zero_grad()
        self._engine(method).backward(self.x, self.y)
        return self._gradients()

    def changes(self, method: tp.Method) -> list[Tensor]:
        """Carry the output's change down.

        Args:
            method: the recipe, with the same cut.

        Returns:
            ``Δ_l / β`` for ``l = 1…L``, each of shape ``(n, d_l)``.
        """
        record, bank = self.forward(), self._engine(method).bank
        delta = method.output_target(record.output, self.y, nn.MSELoss()).delta
        with torch.no_grad():
            found = propagate(record, bank, delta, method.inversion, method.propagation, measure=False).deltas
            return [delta / method.output_target.beta for delta in method.influence(found)]

    def _engine(self, method: tp.Method) -> tp.TargetPropagation:
        return tp.TargetPropagation(self.net, nn.MSELoss(), example_input=self.x, method=method)

    def _gradients(self) -> list[Tensor]:
        found = [[p.grad.flatten() for p in module.parameters() if p.grad is not None] for module in self.net]
        return [torch.cat(parts) for parts in found if parts]


def random_problem(
    widths: Sequence[int],
    activation: Callable[[], nn.Module],
    seed: int,
    samples: int,
    *,
    spread: float,
    gains: Sequence[float] | None = None,
    bias: float = 0.1,
) -> Problem:
    """Draw a network, and a batch of normal inputs and targets.

    Args:
        widths: see `random_network`.
        activation: see `random_network`.
        seed: seed of network and batch.
        samples: size of the batch.
        spread: see `random_network`.
        gains: see `random_network`.
        bias: see `random_network`.

    Returns:
        The problem.
    """
    generator = torch.Generator().manual_seed(seed + 2**20)
    net = random_network(widths, activation, seed, spread=spread, gains=gains, bias=bias)
    x, y = (torch.randn(samples, width, dtype=DTYPE, generator=generator) for width in (widths[0], widths[-1]))
    return Problem(net, x, y)
