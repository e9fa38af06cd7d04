"""Opens a run folder again: its configuration, and a session where its checkpoint left it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from targetprop.experiments.config import RunConfig
from targetprop.experiments.data import Dataset
from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.experiments.loop import Session
from targetprop.experiments.memory import fitting
from targetprop.experiments.parser import build_config
from targetprop.experiments.run_folder import CONFIG
from targetprop.experiments.same_config import check_config
from targetprop.experiments.session import build_session, find_device, load_data, restore_session
from targetprop.experiments.values import read_file


def read_stored_values(run: Path, command: str) -> dict[str, str]:
    """Read the configuration of a run."""
    if not (run / CONFIG).is_file():
        raise CommandError(f"{command} {run} is not a run folder, it has no {CONFIG}; give the folder of a run")
    return read_file(str(run / CONFIG))


def parse_stored(run: Path, stored: dict[str, str]) -> RunConfig:
    """Check the configuration of a run."""
    try:
        return build_config(stored)
    except CommandError as error:
        way_out = "put back the file that the run began with, or use the release that wrote it"
        raise CommandError(f"{run / CONFIG} cannot be used ({error}); {way_out}", FAILURE) from error


def open_session(
    config: RunConfig,
    state: dict[str, Any],
    device: torch.device | None = None,
    connect: "Callable[[torch.device], dist.ProcessGroup | None]" = lambda device: None,
) -> tuple[Session, Dataset]:
    """Put a session where a checkpoint left it."""
    check_config(config, state)
    device = find_device(config.loop.device) if device is None else device
    with fitting("the data"):
        data = load_data(config, device)
    with fitting(f"network {config.network.name!r}"):
        session = build_session(config, data, connect(device))
        if state:
            restore_session(session, state)
    return session, data
