"""Sums of gradients over ranks, sent in buckets while the gradients of the layers below are still being made."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from targetprop.ranks import Ranks

BUCKET = 2**22  # bytes that are sent together


class Buckets:
    """Collects what one step adds to ``.grad``; what was there before is not sent.

    Args:
        ranks: the processes.
    """

    def __init__(self, ranks: Ranks) -> None:
        """Start empty."""
        self._ranks = ranks
        self._filling: list[tuple[nn.Parameter, Tensor]] = []
        self._sent: list[tuple[list[tuple[nn.Parameter, Tensor]], Callable[[], None]]] = []

    @contextmanager
    def collect(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Take what is added to ``.grad`` meanwhile, and send it as soon as a bucket is full.

        Args:
            parameters: whose gradients will be made; autograd hands them over one by one.

        Yields:
            Nothing.
        """
        if self._ranks.alone:
            yield
            return
        before = {p: p.grad for p in parameters}
        hooks = [p.register_post_accumulate_grad_hook(self._add) for p in before if p.requires_grad]
        try:
            for p in before:
                p.grad = None
            yield
            for p in before:  # those that were not made by autograd
                self._add(p)
        finally:
            for hook in hooks:
                hook.remove()
            for p, old in before.items():
                p.grad = old

    def finish(self) -> None:
        """Send the rest, wait for all sums and add them to ``.grad``."""
        self._send()
        for bucket, wait in self._sent:
            wait()
            for p, gradient in bucket:
                p.grad = gradient if p.grad is None else p.grad.add_(gradient)
        self._sent.clear()

    def _add(self, p: Tensor) -> None:
        assert isinstance(p, nn.Parameter)
        if p.grad is None:
            return
        self._filling.append((p, p.grad))
        p.grad = None
        if sum(gradient.nbytes for _, gradient in self._filling) >= BUCKET:
            self._send()

    def _send(self) -> None:
        if self._filling:
            self._sent.append((self._filling, self._ranks.begin_sum([gradient for _, gradient in self._filling])))
            self._filling = []
