"""Where a process stands among those that ``torchrun`` started."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Seat:
    """Where a process stands among those of its run.

    Attributes:
        rank: its number.
        size: how many there are.
        local: its number on its own machine, which is that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local: int = 0


def find_seat() -> Seat:
    """Look for what ``torchrun`` tells the processes that it starts."""
    told = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if "MASTER_ADDR" not in os.environ or not all(text.isdecimal() for text in told):
        return Seat()
    return Seat(*map(int, told))
