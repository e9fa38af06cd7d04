"""What keeps numbers that are not finite out of a step, with few transfers to the host.

A step keeps things at two places, where decoders change and where ``.grad`` is written. In front of each,
`Guard.passes` reads one number from the device, for however many layers; what it refuses leaves no trace. Several ranks
add their numbers up before, so that all of them take a step or none does.
"""

from collections.abc import Iterable
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

from targetprop.ranks import Ranks


class Guard:
    """Collects numbers, and tells whether all are finite.

    Each tensor is seen through its Euclidean norm: where two norms are finite, so is every product of the two tensors.

    Args:
        *groups: the processes that decide together, which all watch for the same things in the same order; where they
            form a grid, its rows and its columns.

    >>> guard = Guard()
    >>> guard.watch("the loss is not a number", torch.tensor(2.0))
    >>> guard.passes()
    True
    >>> guard.watch("the target is infinite", torch.tensor([1.0, torch.inf]))
    >>> guard.passes(), guard.reason
    (False, 'the target is infinite')
    """

    def __init__(self, *groups: Ranks) -> None:
        """Start with nothing to look at; without groups, this process is alone."""
        self._groups = [group for group in groups if not group.alone]
        self.reason: str | None = None
        self._pending: list[tuple[str, list[Tensor]]] = []

    def watch(self, problem: str, *values: Tensor) -> None:
        """Look at tensors the next time.

        Args:
            problem: what is wrong if one of them is not finite.
            *values: tensors, of which nothing but their norms is kept; integers are finite. There may be none, where
                only other processes have any.
        """
        self._pending.append((problem, [_norm(v.detach()) for v in values if v.is_floating_point()]))

    def passes(self) -> bool:
        """Read what was collected; what was found once stays.

        Returns:
            False if anything so far was not finite, on any rank; the first problem is then the `reason`.
        """
        pending, self._pending = self._pending, []
        if self.reason is None and pending and not isfinite(self._sum([norm for _, own in pending for norm in own])):
            broken = [place for place, (_, own) in enumerate(pending) if not all(isfinite(float(norm)) for norm in own)]
            first = broken[0] if broken else len(pending)
            for group in self._groups:
                first = group.least(first)
            self.reason = pending[first % len(pending)][0]  # where only the sum overflows, as good as any
        return self.reason is None

    def _sum(self, norms: list[Tensor]) -> float:
        if not self._groups:
            return float(torch.stack(norms).sum()) if norms else 0.0
        total = torch.zeros((), dtype=torch.double, device=self._groups[0].device)
        total = total + torch.stack(norms).sum() if norms else total
        for group in self._groups:
            group.sum_([total])
        return float(total)


def _norm(values: Tensor) -> Tensor:
    dtype = torch.promote_types(values.dtype, torch.float32)
    return torch.linalg.vector_norm(values, dtype=dtype) if values.dim() else values.to(dtype)


class Gradients:
    """Sets the ``.grad`` of some parameters aside, so that a step writes into empty ones.

    Args:
        parameters: the parameters; no ``.grad`` is copied.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Remember them."""
        self._before = [(parameter, parameter.grad) for parameter in parameters]

    def __enter__(self) -> "Gradients":
        """Take them away."""
        for parameter, _ in self._before:
            parameter.grad = None
        return self

    @torch.no_grad()
    def add(self) -> None:
        """Keep what was written meanwhile, added to what was there before."""
        self._before = [
            (p, p.grad if before is None else before if p.grad is None else before.add_(p.grad))
            for p, before in self._before
        ]

    def __exit__(self, *_: object) -> None:
        """Put them back; what was written meanwhile is forgotten unless it was added."""
        for parameter, before in self._before:
            parameter.grad = before


class RunningStatistics:
    """Copies of the running statistics that a forward pass in training mode changes.

    Args:
        modules: all modules of a network.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """Copy them."""
        changing = [m for m in modules if isinstance(m, _NormBase) and m.training and m.track_running_stats]
        self._before = [(buffer, buffer.clone()) for module in changing for buffer in module.buffers(recurse=False)]

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back."""
        for buffer, before in self._before:
            buffer.copy_(before)
