"""Builds what a configuration describes: device, data, and the state that training begins with."""

from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

import targetprop as tp
from targetprop.experiments.config import RunConfig
from targetprop.experiments.data import Dataset
from targetprop.experiments.distributed import Processes
from targetprop.experiments.errors import CommandError
from targetprop.experiments.memory import fitting
from targetprop.experiments.random_state import begin_random_stream
from targetprop.experiments.same_config import check_config
from targetprop.experiments.state import TrainState


def build(
    config: RunConfig, processes: Processes | None = None, saved: dict[str, Any] | None = None
) -> tuple[TrainState, Dataset]:
    """Load the data and make the state that a run begins with, or that its checkpoint has."""
    if saved is not None:
        check_config(config, saved)
    with fitting("the data"):
        data = load_data(config, find_device(config.loop.device, processes))
    with fitting(f"network {config.network.name!r}"):
        state = build_state(config, data, processes)
        if saved is not None:
            state.load_state_dict(saved)
    return state, data


def find_device(name: str, processes: Processes | None = None) -> torch.device:
    """Choose the device: of several processes, each takes the GPU of its number."""
    if name == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device cuda was asked for and PyTorch finds no GPU; use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" or processes is None or processes.size == 1:
        return torch.device(name)
    if processes.local_rank >= torch.cuda.device_count():
        raise CommandError(
            f"there are {torch.cuda.device_count()} GPUs and at least {processes.local_rank + 1} processes here; give"
            " --nproc-per-node the number of GPUs, or --device cpu"
        )
    return torch.device(name, processes.local_rank)


def load_data(config: RunConfig, device: torch.device) -> Dataset:
    """Load the data in the precision and onto the device of a run."""
    data = config.data.load().to(device)
    if config.loop.precision != "fp64":
        return data
    return data.with_inputs(Tensor.double)


def build_state(config: RunConfig, data: Dataset, processes: Processes | None = None) -> TrainState:
    """Make network, engine and optimiser from the seed."""
    processes = processes or Processes()
    seed, device = config.loop.seed, data.train_x.device
    torch.manual_seed(seed)
    model = config.network.build(data.shape, data.classes).to(device, data.train_x.dtype)
    loss = nn.CrossEntropyLoss()
    try:
        engine = tp.TargetPropagation(
            model,
            loss,
            example_input=data.train_x[:2],
            method=config.method,
            layers=config.network.layers,
            seed=seed,
            on_divergence="skip",
            process_group=processes.group,
        )
    except (ValueError, TypeError) as error:
        raise CommandError(str(error)) from error
    optimizer = config.optimizer.make(model.parameters())
    steps = config.loop.epochs * ceil(len(data.train_x) / config.loop.batch_size)
    schedule, order = config.schedule.make(optimizer, steps), torch.Generator().manual_seed(seed)
    begin_random_stream(processes.rank, seed)
    return TrainState(
        model, engine, optimizer, schedule, loss, order, config.loop.precision, config.loop.max_skipped, processes
    )
