"""The command line, with an accident at one step of one rank: ``ACCIDENT RANK STEP train …``."""

import os
import signal
import sys
from typing import Any

from targetprop.experiments.crew import Crew
from targetprop.experiments.main import main


def _memory() -> None:
    raise MemoryError("a rank's memory is full")


ACCIDENTS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "frozen": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "memory": _memory,
    "stopped": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "terminate": lambda: os.kill(os.getppid(), signal.SIGTERM),
    "interrupt": lambda: os.kill(os.getppid(), signal.SIGINT),
    "nothing": lambda: None,
}

if __name__ == "__main__":
    accident, rank, step = sys.argv[1], *map(int, sys.argv[2:4])
    agree, steps = Crew.agree, []

    def agree_or_fail(crew: Crew, *arguments: Any, **more: Any) -> tuple[bool, bool]:
        steps.append(crew)
        if (crew.seat.rank, len(steps)) == (rank, step):
            ACCIDENTS[accident]()
        return agree(crew, *arguments, **more)

    Crew.agree = agree_or_fail
    sys.exit(main(sys.argv[4:]))
