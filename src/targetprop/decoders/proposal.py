"""What decoders would learn from one batch: worked out first, looked at, and only then taken."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from targetprop.finite import Look

CURE = "lower the decoders' learning rate or noise, or load an earlier checkpoint"
BAD_DECODER = "the decoder of layer {} has a "
BAD_GRADIENT = f"the decoders' gradient is NaN or infinite; {CURE}"


def _nothing() -> None:
    pass


@dataclass(frozen=True, eq=False)
class Proposal:
    """A change of the decoders that has not been made yet.

    Attributes:
        loss: the decoders' loss before it, summed over layers, a scalar; None if nothing is learned.
        looks: what must be finite before it is made.
        apply: makes it.
    """

    loss: Tensor | None = None
    looks: tuple[Look, ...] = ()
    apply: Callable[[], None] = _nothing


def look_at_mirror(key: str, missed: Tensor) -> Look:
    """Look at what the map of a weight answered to its probes."""
    return Look(f"the mirror of {{}} has a probe's answer that is NaN or infinite; {CURE}", (missed,), key)


def look_at_decoder(name: str, what: str, *values: Tensor) -> Look:
    """Look at numbers of the decoder of one layer."""
    return Look(f"{BAD_DECODER}{what} that is NaN or infinite; {CURE}", values, name)


class Rehearsal:
    """Changes that are made at once, taken back, and made again when they are wanted.

    Args:
        parameters: what will change.
        optimizer: whose state will change with it, if any.
    """

    def __init__(self, parameters: list[Tensor], optimizer: torch.optim.Optimizer | None = None) -> None:
        """Remember how everything is."""
        self._parameters, self._optimizer = parameters, optimizer
        self._before, self._after = self._copy(), None

    def take_back(self) -> None:
        """Put everything back as it was, and remember how it is now."""
        self._after = self._copy()
        self._set(*self._before)

    def repeat(self) -> None:
        """Make the changes again."""
        assert self._after is not None
        self._set(*self._after)

    def _copy(self) -> tuple[list[Tensor], object]:
        state = None if self._optimizer is None else deepcopy(self._optimizer.state_dict())
        return [p.detach().clone() for p in self._parameters], state

    @torch.no_grad()
    def _set(self, values: list[Tensor], state: object) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state)  # pyright: ignore[reportArgumentType]
