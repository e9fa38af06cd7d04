"""How the processes that ``torchrun`` starts come together, and part."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from targetprop.experiments.board import come_key, ready_key
from targetprop.experiments.crew import TIMEOUT, Crew
from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.experiments.pulse import Pulse
from targetprop.experiments.seat import Seat
from targetprop.experiments.stop_signals import impatient

MEETING = 50.0  # seconds that a rank waits for the others to come


class Meeting:
    """The processes of a run before they train: each chooses its device and loads its data, then they are connected.

    Attributes:
        crew: the same.
    """

    def __init__(self, crew: Crew, store: Store | None = None) -> None:
        """Keep all."""
        self.crew, self._store = crew, store

    def connect(self, device: torch.device) -> "dist.ProcessGroup | None":
        """Wait until all are ready to train, and make their group."""
        if self._store is None:
            return None
        self.crew.meet(ready_key, "get ready", TIMEOUT)
        seat, backend = self.crew.seat, "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            backend = "nccl"
        try:
            dist.init_process_group(
                backend, store=self._store, rank=seat.rank, world_size=seat.size, timeout=timedelta(seconds=TIMEOUT)
            )
        except (RuntimeError, ValueError) as error:
            raise CommandError(f"the {seat.size} processes cannot be connected: {error}", FAILURE) from error
        return dist.group.WORLD


@contextmanager
def join(seat: Seat) -> Iterator[Meeting]:
    """Meet the other processes of the run."""
    if seat.size == 1:
        yield Meeting(Crew(seat))
        return
    try:
        store = next(iter(rendezvous("env://", timeout=timedelta(seconds=MEETING))))[0]
        crew = Crew(seat, store)
        pulse = Pulse(seat, store.clone(), crew.end_without)  # pyright: ignore[reportAttributeAccessIssue]
    except (RuntimeError, ValueError) as error:
        raise CommandError(f"the {seat.size} processes of the run did not meet: {error}", FAILURE) from error
    try:
        with crew.signals, impatient(crew.signals, crew.end_by_signal), crew.heard():
            crew.meet(come_key, "come", MEETING)
            pulse.start()
            yield Meeting(crew, store)
    finally:
        crew.leave()
        pulse.stop()
        if dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()
