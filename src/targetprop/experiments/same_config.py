"""Notices a run folder whose ``config.yaml`` is no longer the one that its checkpoint was made with."""

from pathlib import Path
from typing import Any

from targetprop.experiments.config import RunConfig
from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.experiments.values import read_values

# What may change in a run that goes on: it does not alter the steps done, or says where the same data is now.
_FREE = {"epochs", "device", "checkpoint_minutes", "logger", "data.root"}


def fixed_values(config: RunConfig) -> dict[str, str]:
    """List what stays the same for a run's whole life."""
    values = read_values(config.to_yaml())
    values["network.name"] = Path(values["network.name"]).name  # a file of the user's own may have moved
    return {name: text for name, text in values.items() if name not in _FREE}


def check_config(config: RunConfig, state: dict[str, Any]) -> None:
    """Compare a configuration with a checkpoint's."""
    stored, now = state.get("config", {}), fixed_values(config)
    for name in (*stored, *now):
        if name not in _FREE and stored and stored.get(name) != now.get(name):
            was, has = (values.get(name, "nothing") for values in (stored, now))
            problem = f"the checkpoint does not fit the run's config.yaml, which has {name} {has} where it was {was}"
            raise CommandError(f"{problem}; put that back, or begin a new run with the file as its --config", FAILURE)
