"""Builds what a configuration describes, and moves its whole state to and from a checkpoint."""

from dataclasses import replace
from math import ceil
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import targetprop as tp
from targetprop.experiments.checkpoint import random_state
from targetprop.experiments.config import RunConfig
from targetprop.experiments.data import Dataset
from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.experiments.loop import Session
from targetprop.experiments.place import Place, restore_place
from targetprop.experiments.schedules import restore_schedule
from targetprop.experiments.skipped import Skipped
from targetprop.experiments.streams import begin_stream, restore_stream
from targetprop.norm_statistics import check_norms

_COUNTERS = ("epoch", "step", "seconds", "best", "last")


def find_device(name: str, local: int | None = None) -> torch.device:
    """Choose the device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device cuda was asked for and PyTorch finds no GPU; use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" or local is None:
        return torch.device(name)
    if local >= torch.cuda.device_count():
        raise CommandError(
            f"there are {torch.cuda.device_count()} GPUs and at least {local + 1} processes here; give"
            " --nproc-per-node the number of GPUs, or --device cpu"
        )
    return torch.device(name, local)


def load_data(config: RunConfig, device: torch.device) -> Dataset:
    """Load the data in the precision and onto the device of a run."""
    data = config.data.load().to(device)
    if config.loop.precision != "fp64":
        return data
    return replace(data, train_x=data.train_x.double(), test_x=data.test_x.double())


def build_session(config: RunConfig, data: Dataset, group: "dist.ProcessGroup | None" = None) -> Session:
    """Make network, engine and optimiser from the seed."""
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
            seed=seed,
            on_divergence="skip",
            process_group=group,
        )
        if not engine.ranks.alone:
            check_norms([model], synchronised=config.method.propagation == "backprop")
    except ValueError as error:
        raise CommandError(str(error)) from error
    optimizer = config.optimizer.make(model.parameters())
    steps = config.loop.epochs * ceil(len(data.train_x) / config.loop.batch_size)
    schedule = config.schedule.make(optimizer, steps)
    order = torch.Generator().manual_seed(seed)
    skipped = Skipped(config.loop.max_skipped)
    begin_stream(engine.ranks, seed)
    return Session(
        model, engine, optimizer, schedule, loss, order, config.loop.precision, engine.ranks, skipped=skipped
    )


def session_state(session: Session) -> dict[str, Any]:
    """Collect all that the rest of the run depends on."""
    place = session.place
    return {
        "model": dict(session.model.state_dict()),
        "engine": session.engine.state_dict(),
        "optimizer": session.optimizer.state_dict(),
        "schedule": session.schedule.state_dict(),
        "order": place.order if place else session.order.get_state(),
        "place": place.state() if place else None,
        "random": random_state(),
        "streams": session.streams,
        "counters": {name: getattr(session, name) for name in _COUNTERS},
        "skipped": {"total": session.skipped.total, "in_a_row": session.skipped.in_a_row},
    }


def restore_session(session: Session, state: dict[str, Any]) -> None:
    """Put a session where another one was."""
    try:
        session.model.load_state_dict(state["model"])
        session.engine.load_state_dict(state["engine"])
        session.optimizer.load_state_dict(state["optimizer"])
        restore_schedule(session.schedule, state["schedule"])
        session.order.set_state(state["order"])
        session.place = _restore_place(session, state.get("place"))
        for name in _COUNTERS:
            setattr(session, name, state["counters"][name])
        others = state.get("streams", [])  # earlier releases kept rank 0's alone
        restore_stream(session.ranks, state["random"], others, session.order.initial_seed(), session.step)
        for name, count in state.get("skipped", {}).items():  # earlier releases did not skip
            setattr(session.skipped, name, count)
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        problem = f"the checkpoint does not fit the run's config.yaml ({error})"
        raise CommandError(f"{problem}; put back the file that the run began with", FAILURE) from error


def _restore_place(session: Session, state: dict[str, Any] | None) -> Place | None:
    if state is None:
        return None
    device = next(session.model.parameters()).device
    return restore_place(state, session.order.get_state(), device, session.ranks)


def check_in_step(session: Session) -> None:
    """Make sure that all ranks have the same weights and decoders."""
    if session.ranks.alone:
        return
    owned = session.engine.state_dict().get("decoders", {})
    tensors = [*session.model.state_dict().values(), *owned.values()]
    sums = torch.stack([tensor.detach().double().sum().to(session.ranks.device) for tensor in tensors])
    if session.ranks.differs(sums):
        problem = "the ranks no longer have the same weights, so their machines compute differently"
        raise CommandError(f"{problem}; resume on machines of one kind", FAILURE)
