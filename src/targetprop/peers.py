"""The processes that take a step together, as the stages of a step see them: one process has no peers.

`targetprop.parallel` derives what sends and receives. Here every sample and every layer is this process' own, so
nothing is sent and no number changes.

>>> Peers().batch(3).total
3
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.batch import Batch
from targetprop.inversion import Columns


class Peers:
    """No other processes.

    Attributes:
        columns: where the columns of the iterates of joint sweeps are.
    """

    columns = Columns()

    def batch(self, rows: int) -> Batch:
        """Say which samples of the step are here, ``rows`` of them; a step without any is a ``ValueError``."""
        return Batch(rows).checked()

    def depth(self, own: int) -> int:
        """Say how many layers the network has, of which this process has ``own``."""
        return own

    def check_same(self, *batch: Any) -> None:
        """Refuse, by a ``ValueError``, a batch that should be the same in several processes and is not."""

    def check_modules(self, modules: Iterable[nn.Module], *, synchronised: bool = False) -> None:
        """Refuse modules, by a ``ValueError``, whose statistics would be those of a part of the samples.

        Args:
            modules: the modules, in their present mode.
            synchronised: whether statistics that the processes share are fine, as autograd can go through them.
        """

    def first(self, number: int) -> int:
        """Take a whole number from the first process."""
        return number

    def settle(self, network: Any, example: Any, bank: Any, optimizer: Any) -> None:
        """Learn from a network, a forward pass on an example, decoders and their optimiser who works on what."""

    # The forward pass: from the processes of lower layers to those of higher ones.

    def own(self, layers: int) -> range:
        """Say which of the layers of a network this process works on, counted from 0."""
        return range(layers)

    def receive_input(self, x: Tensor) -> Tensor:
        """Give the input of this process' lowest layer: the network's, or what comes from below."""
        return x

    def send_output(self, h: Tensor) -> Tensor:
        """Hand the output of this process' highest layer on.

        Args:
            h: the output, detached.

        Returns:
            The network's output.
        """
        return h

    # Targets: from the processes of higher layers to those of lower ones.

    def receive_change(self, delta: Tensor) -> Tensor:
        """Give the change asked of this process' highest layer: the output's ``Δ_L``, or what comes from above."""
        return delta

    def send_change(self, change: Tensor) -> None:
        """Hand the change asked of the layer below this process' lowest one on."""
        raise RuntimeError("there is no layer below the first")

    def exchange_changes(self, change: Tensor | None, delta: Tensor) -> Tensor:
        """Do both at once with the iterates of joint sweeps; ``change`` is None where there is no layer below."""
        return delta

    # What all have to agree on.

    def sum_norms(self, norms: Sequence[Tensor]) -> float:
        """Sum norms, of all processes."""
        return float(torch.stack(list(norms)).sum()) if norms else 0.0

    def first_problem(self, found: tuple[int, str] | None) -> str | None:
        """Choose the problem that all name, of those that each process found with its turn in the step."""
        return None if found is None else found[1]

    def sum_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Sum gradients over the processes that share the samples, in place."""

    def whole_report(self, report: Any, batch: Batch, *, measure: bool) -> Any:
        """Put together what all processes know of a step."""
        return report

    # What an engine keeps.

    def start_alike(self, named: Mapping[str, Tensor]) -> None:
        """Give every process the tensors that the first one has."""

    def gather_layers(self, modules: Sequence[Sequence[nn.Module]]) -> None:
        """Give every process the parameters and buffers of each layer's modules as its owner has them."""

    def merge(self, mine: dict[str, Any]) -> dict[str, Any]:
        """Put dictionaries together of which each process holds the entries of its own layers."""
        return mine

    def merge_optimizer(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        """Put the states of an optimiser together, which each process has of its own layers' parameters."""
        return state
