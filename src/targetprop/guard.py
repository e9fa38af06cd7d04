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
        ranks: the processes that decide together, which all watch the same things in the same order.

    >>> guard = Guard()
    >>> guard.watch("the loss is not a number", torch.tensor(2.0))
    >>> guard.passes()
    True
    >>> guard.watch("the target is infinite", torch.tensor([1.0, torch.inf]))
    >>> guard.passes(), guard.reason
    (False, 'the target is infinite')
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        """Start with nothing to look at; without ranks, this process is alone."""
        self._ranks = Ranks() if ranks is None else ranks
        self.reason: str | None = None
        self._pending: list[tuple[str, Tensor]] = []

    def watch(self, problem: str, *values: Tensor) -> None:
        """Look at tensors the next time.

        Args:
            problem: what is wrong if one of them is not finite.
            *values: tensors, of which nothing but their norms is kept; integers are finite.
        """
        for tensor in (value for value in values if value.is_floating_point()):
            dtype, tensor = torch.promote_types(tensor.dtype, torch.float32), tensor.detach()
            norm = torch.linalg.vector_norm(tensor, dtype=dtype) if tensor.dim() else tensor.to(dtype)
            self._pending.append((problem, norm))

    def passes(self) -> bool:
        """Read what was collected; what was found once stays.

        Returns:
            False if anything so far was not finite, on any rank; the first problem is then the `reason`.
        """
        pending, self._pending = self._pending, []
        if self.reason is None and pending:
            total = torch.stack([norm for _, norm in pending]).sum()
            self._ranks.sum_([total])
            if not isfinite(float(total)):
                broken = [place for place, (_, norm) in enumerate(pending) if not isfinite(float(norm))]
                first = self._ranks.least(broken[0] if broken else len(pending))
                self.reason = pending[first % len(pending)][0]  # where only the sum overflows, as good as any
        return self.reason is None


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
