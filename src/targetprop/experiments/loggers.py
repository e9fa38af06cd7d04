"""Loggers of Lightning beside ``metrics.jsonl``: CSV, TensorBoard, Weights & Biases; each is an extra of its name."""

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from targetprop.experiments.config import RunConfig
from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.runs.read import read_metrics

_PACKAGES = {"csv": ["lightning"], "tensorboard": ["lightning", "tensorboard"], "wandb": ["lightning", "wandb"]}


def check_logger(name: str) -> None:
    """Refuse a logger whose packages are not installed."""
    missing = [package for package in _PACKAGES.get(name, []) if find_spec(package) is None]
    if missing:
        problem = f"--logger {name} needs {' and '.join(missing)}, which is not installed"
        raise CommandError(f"{problem}; run pip install 'targetprop[{name}]', or leave the option out", FAILURE)


class RunLogger:
    """Hands the metrics of a run to the logger that its configuration names; to none, if it names none."""

    def __init__(self, config: RunConfig, run: Path | None) -> None:
        """Open a new version of the log, and repeat what the run has logged before; later ranks have no run folder."""
        self._logger: Any = None
        if run is None or config.loop.logger == "none":
            return
        try:
            self._logger = _make(config.loop.logger, run)
            self._logger.log_hyperparams(yaml.safe_load(config.to_yaml()))
        except _refusals(config.loop.logger) as error:
            problem, way_on = str(error).rstrip("."), f"targetprop train --resume {run}"
            remedy = f"run wandb login or set WANDB_MODE=offline, then {way_on}"
            raise CommandError(f"--logger wandb cannot begin ({problem}); {remedy}", FAILURE) from error
        for record in read_metrics(run):
            self.log(record)

    def log(self, record: dict[str, Any]) -> None:
        """Log the numbers of an epoch or a step; those of layers as ``residuals/LAYER``."""
        if self._logger is None or record["kind"] not in ("epoch", "step"):
            return
        self._logger.log_metrics(dict(_numbers(record)), step=record["step"])
        if record["kind"] == "epoch":
            self._logger.save()

    def close(self, status: str) -> None:
        """Write what is left, and say how the run ended: "finished", "interrupted" or "failed"."""
        logger, self._logger = self._logger, None
        if logger is None:
            return
        logger.finalize("success" if status == "finished" else status)
        if hasattr(logger.experiment, "finish"):  # of Weights & Biases, which takes the run for running until then
            logger.experiment.finish(exit_code=int(status != "finished"))


def _make(name: str, run: Path) -> Any:
    loggers = import_module("lightning.pytorch.loggers")
    if name == "csv":
        return loggers.CSVLogger(run, name="csv")
    if name == "tensorboard":
        return loggers.TensorBoardLogger(run, name="tensorboard", default_hp_metric=False)
    return loggers.WandbLogger(project="targetprop", name=run.resolve().name, save_dir=run)


def _refusals(name: str) -> tuple[type[Exception], ...]:
    """List what a service raises that has no account or does not answer."""
    return (import_module("wandb").Error,) if name == "wandb" else ()


def _numbers(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and f"{prefix}{name}" != "step":
            yield f"{prefix}{name}", value
