"""The content of ``summary.json``."""

import os
import socket
from datetime import UTC, datetime
from typing import Any

import torch

import targetprop
from targetprop.experiments.config import RunConfig
from targetprop.experiments.data import Dataset
from targetprop.experiments.state import TrainState


def summarise(
    config: RunConfig, state: TrainState, data: Dataset, status: str, reason: str | None, saved: int | None
) -> dict[str, Any]:
    """Say how a run stands."""
    last = state.last
    return {
        "method": config.method.name,
        "data": config.data.name,
        "seed": config.loop.seed,
        "status": status,
        "reason": reason,
        "epochs": state.epoch,
        "epochs_planned": config.loop.epochs,
        "steps": state.step,
        "skipped_steps": state.skipped,
        "checkpoint_step": saved,
        "train_loss": last.get("train_loss"),
        "train_accuracy": last.get("train_accuracy"),
        "validation_loss": last.get("validation_loss"),
        "validation_accuracy": last.get("validation_accuracy"),
        "test_loss": last.get("test_loss"),
        "test_accuracy": last.get("test_accuracy"),
        "best_test_accuracy": state.best if state.epoch else None,
        "seconds_per_step": last["seconds"] / last["step"] if last else None,
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "device": str(data.train_x.device),
        "ranks": state.processes.size,
        "torch": torch.__version__,
        "targetprop": targetprop.__version__,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
    }
