"""The command line on several ranks, with an accident at one place of one of them.

A new process takes a file of scenarios, forks the ranks of each, and writes how they ended there. Where a scenario is
"launched", the agent of ``torchrun`` forks them and watches them.
"""

import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

from torch import nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from targetprop.experiments import recorder
from targetprop.experiments.main import main
from targetprop.experiments.networks import Dense
from targetprop.experiments.recorder import RunRecorder


def _memory() -> None:
    raise MemoryError


ACCIDENTS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "frozen": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "memory": _memory,
    "stopped": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "stopped at once": lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)],
    "interrupt": lambda: os.kill(os.getppid(), signal.SIGINT),  # the agent
}


def run(
    argv: list[str], accident: str = "", rank: int = 0, place: int = 0, *, late: bool = False, dropout: bool = False
) -> int:
    """Run the command, where this rank has an accident when the ranks agree for the so many-th time.

    Where a scenario is "late", the others have their Ctrl-C as soon as they have agreed to stop.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored
    plain, times = RunRecorder._agree, []

    def agree(self: RunRecorder, *due: bool) -> tuple[bool, bool]:
        times.append(due)
        if (self.state.processes.rank, len(times)) == (rank, place):
            ACCIDENTS[accident]()
        agreed = plain(self, *due)
        if late and agreed[0] and self.state.processes.rank != rank:
            signal.raise_signal(signal.SIGINT)
        return agreed

    RunRecorder._agree = agree
    if dropout:  # which no network of the command line has
        build = Dense.build
        Dense.build = lambda *arguments: nn.Sequential(*build(*arguments)[:-1], nn.Dropout(0.5), build(*arguments)[-1])
    return main(argv)


def start_rank(own: int, port: int, log: Path, scenario: dict) -> int:
    """Fork a rank; returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        place = {"RANK": str(own), "LOCAL_RANK": str(own), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(place | {"MASTER_PORT": str(port)} | scenario.pop("environment", {}))
        status = run(**scenario)
        sys.stdout.flush()
    finally:
        os._exit(status)


def play(scenario: dict, folder: Path) -> dict:
    """Run two ranks to the end of rank 0, and end the other one if it hangs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    logs = [folder / f"rank{own}.log" for own in range(2)]
    ranks = [start_rank(own, port, log, scenario) for own, log in enumerate(logs)]
    start = time.monotonic()
    codes = [os.waitstatus_to_exitcode(os.waitpid(ranks[0], 0)[1])]
    seconds = time.monotonic() - start
    if scenario.get("accident") == "frozen":
        os.kill(ranks[1], signal.SIGKILL)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(ranks[1], 0)[1]))
    return {"codes": codes, "said": [log.read_text() for log in logs], "seconds": seconds}


def launch(scenario: dict, folder: Path) -> dict:
    """Let an agent as that of ``torchrun`` run two ranks."""
    log = folder / "agent.log"
    child = os.fork()
    if not child:
        status = 70
        try:
            with log.open("wb") as file:
                os.dup2(file.fileno(), 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            config = LaunchConfig(1, 1, 2, run_id="tests", rdzv_backend="c10d", rdzv_endpoint="localhost:0")
            config.start_method, config.monitor_interval, config.max_restarts = "fork", 0.1, 0
            elastic_launch(config, _launched)(scenario)
            status = 0
        except BaseException:
            traceback.print_exc()
            status = 1
        finally:
            sys.stderr.flush()
            os._exit(status)
    return {"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "said": log.read_text()}


def _launched(scenario: dict) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the agent has a handler of its own
    sys.exit(run(**scenario))


def play_all(path: Path) -> None:
    """Play the scenarios of a file, where "alone" is the words of a command that this process runs first."""
    recorder.draw_curves = lambda run: run
    scenarios = json.loads(path.read_text())
    main(scenarios.pop("alone"))  # imports what every rank needs
    gc.collect()
    gc.freeze()
    played = {
        name: (launch if scenario.pop("launched", False) else play)(scenario, path.parent)
        for name, scenario in scenarios.items()
    }
    path.write_text(json.dumps(played))
