"""Opens a run folder again: its configuration, and a session where its checkpoint left it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from targetprop.experiments.arguments import Arguments, read_file
from targetprop.experiments.config import RunConfig
from targetprop.experiments.data import Dataset
from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.experiments.loop import Session
from targetprop.experiments.memory import fitting
from targetprop.experiments.parse import parse_config
from targetprop.experiments.run_folder import CONFIG
from targetprop.experiments.same_config import check_config
from targetprop.experiments.session import build_session, find_device, load_data, restore_session


def read_stored_values(run: Path, command: str) -> dict[str, str]:
    """Read the configuration of a run.

    Args:
        run: the run's folder.
        command: what asks for it, for messages.

    Returns:
        Values by dotted name.

    Raises:
        CommandError: it is not a run's folder.
    """
    if not (run / CONFIG).is_file():
        raise CommandError(f"{command} {run} is not a run folder, it has no {CONFIG}; give the folder of a run")
    return read_file(str(run / CONFIG))


def parse_stored(run: Path, stored: dict[str, str]) -> RunConfig:
    """Check the configuration of a run.

    Args:
        run: the run's folder.
        stored: what `read_stored_values` returned.

    Returns:
        The configuration.

    Raises:
        CommandError: it is no longer a configuration of this release.
    """
    try:
        return parse_config(Arguments(stored))
    except CommandError as error:
        way_out = "put back the file that the run began with, or use the release that wrote it"
        raise CommandError(f"{run / CONFIG} cannot be used ({error}); {way_out}", FAILURE) from error


def open_session(
    config: RunConfig,
    state: dict[str, Any],
    device: torch.device | None = None,
    connect: "Callable[[torch.device], dist.ProcessGroup | None]" = lambda device: None,
) -> tuple[Session, Dataset]:
    """Put a session where a checkpoint left it.

    Args:
        config: the run's configuration.
        state: the content of its checkpoint; empty for a run that has none yet.
        device: where it goes on; None is the device that the configuration names.
        connect: finds the processes that train together, once this one has its data; None is this one alone.

    Returns:
        The session and its data, on that device.
    """
    check_config(config, state)
    device = find_device(config.loop.device) if device is None else device
    with fitting("the data"):
        data = load_data(config, device)
    with fitting(f"network {config.network.name!r}"):
        session = build_session(config, data, connect(device))
        if state:
            restore_session(session, state)
    return session, data
