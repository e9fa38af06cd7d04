"""The command line, with an accident at one place of one rank: ``ACCIDENT RANK PLACE train …``, several after ``then``.

The place is the number of a step, "data" before the ranks are connected, or "build" after that.
"""

import os
import signal
import sys
from itertools import groupby
from typing import Any

from torch import nn

from targetprop.experiments import pulse
from targetprop.experiments.crew import Crew
from targetprop.experiments.main import main
from targetprop.experiments.meeting import Meeting
from targetprop.experiments.networks import Dense


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


class Accident:
    """Waits for its place in each of this process's runs."""

    def __init__(self) -> None:
        self.name, self.rank, self.place, self.steps = "nothing", 0, "", 0
        agree, connect = Crew.agree, Meeting.connect

        def agree_or_fail(crew: Crew, *arguments: Any, **more: Any) -> tuple[bool, bool]:
            self.steps += 1
            self.pass_by(crew, str(self.steps))
            return agree(crew, *arguments, **more)

        def connect_or_fail(meeting: Meeting, *arguments: Any) -> Any:
            self.pass_by(meeting.crew, "data")
            group = connect(meeting, *arguments)
            self.pass_by(meeting.crew, "build")
            return group

        Crew.agree, Meeting.connect = agree_or_fail, connect_or_fail

    def pass_by(self, crew: Crew, place: str) -> None:
        if (crew.seat.rank, place) == (self.rank, self.place):
            ACCIDENTS[self.name]()

    def run(self, name: str, rank: str, place: str, *command: str) -> int:
        self.name, self.rank, self.place, self.steps = name, int(rank), place, 0
        return main(command)


def drop_out() -> None:
    """Put dropout into the network, which no network of the command line has."""
    build = Dense.build
    Dense.build = lambda *arguments: nn.Sequential(*build(*arguments)[:-1], nn.Dropout(0.5), build(*arguments)[-1])


if __name__ == "__main__":
    pulse.PERIOD = float(os.environ.get("PERIOD", pulse.PERIOD))
    if "DROPOUT" in os.environ:
        drop_out()
    accident, ports = Accident(), os.environ["PORTS"].split()
    runs = [list(words) for same, words in groupby(sys.argv[1:], lambda word: word == "then") if not same]
    for run, port in zip(runs, ports, strict=True):
        os.environ["MASTER_PORT"] = port
        status = accident.run(*run)
    sys.exit(status)
