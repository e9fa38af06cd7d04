"""The one training loop: what fills ``.grad`` is an argument, target propagation or the matched baseline."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from targetprop import Status, StepReport
from targetprop.experiments.data import Dataset
from targetprop.experiments.place import Place, begin_epoch
from targetprop.experiments.skipped import Skipped
from targetprop.precision import at_least_float32
from targetprop.ranks import Ranks

EVALUATION_BATCH = 1024
Precision = Literal["fp32", "bf16", "fp64"]


class GradientFiller(Protocol):
    """What the loop needs of an engine."""

    def backward(self, x: Tensor, y: Tensor, *, measure: bool = False) -> StepReport:
        """Fill ``.grad``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Collect what the engine owns."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        ...


class Watcher(Protocol):
    """What the loop tells about its steps."""

    def on_step(self, record: dict[str, Any] | None) -> None:
        """Hear of a step; the record is None where nothing was measured."""
        ...

    def on_skip(self, record: dict[str, Any]) -> None:
        """Hear of a step that was skipped."""
        ...


@dataclass
class Session:
    """Everything that training changes.

    Attributes:
        model: the network.
        engine: fills its gradients.
        optimizer: changes its weights.
        schedule: changes the optimiser's learning rate.
        loss: the loss, a mean over the batch.
        order: draws the order of the data and the seed of each epoch's augmentation, on the CPU.
        precision: of the activations; the network of "fp64" is in float64 itself.
        ranks: the processes that train together, each on its part of every batch.
        epoch: epochs done.
        step: steps done.
        seconds: time spent in steps.
        best: best test accuracy so far.
        last: what the last epoch was like.
        skipped: the steps that were skipped, and how many may be.
        place: where within its epoch the run stands; None between two epochs.
        streams: random states of the ranks after the first, as they were when these last agreed to save.
    """

    model: nn.Module
    engine: GradientFiller
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    loss: nn.Module
    order: torch.Generator
    precision: Precision = "fp32"
    ranks: Ranks = field(default_factory=Ranks)
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best: float = 0.0
    last: dict[str, Any] = field(default_factory=dict)
    skipped: Skipped = field(default_factory=lambda: Skipped(10))
    place: Place | None = None
    streams: list[dict[str, Tensor]] = field(default_factory=list)


def run_epoch(session: Session, data: Dataset, batch_size: int, log_every: int, watcher: Watcher) -> dict[str, Any]:
    """Train to the end of the epoch and evaluate.

    A step whose numbers are not finite is skipped and counted; weights and schedule stay where they are.
    """
    session.model.train()
    start, before = perf_counter(), session.seconds
    device, ranks = data.train_x.device, session.ranks
    own = slice(ranks.rank, None, ranks.size)
    place = session.place = session.place or begin_epoch(session.order, device)
    order = torch.randperm(len(data.train_x), generator=session.order).to(device)
    augment = data.augmentation.begin_epoch(session.order, device, own)
    place.enter(augment)
    for batch in order.split(batch_size)[place.batches :]:
        x, y = augment(data.train_x[batch[own]], len(batch)), data.train_y[batch[own]]
        session.step += 1
        measure = session.step == 1 or session.step % log_every == 0
        session.optimizer.zero_grad()
        with casting(device, session.precision):
            report = session.engine.backward(x, y, measure=measure)
        right = (report.output.argmax(1) == y).sum()
        if report.skipped is None:
            session.optimizer.step()
        else:
            at = {"epoch": session.epoch + 1, "step": session.step}
            watcher.on_skip({"kind": "skip", **at, "reason": report.skipped})
        session.skipped.observe(report.skipped)
        session.seconds = before + perf_counter() - start
        record = None
        if report.skipped is None:
            place.count(report.loss, right, len(batch))
            ranks.sum_([right] if measure else [])
            record = _step_record(session, report, float(right) / len(batch)) if measure else None
            session.schedule.step()
        else:
            place.skipped += 1
        place.advance(augment)
        watcher.on_step(record)
    if not place.counted:
        raise FloatingPointError(f"all steps of epoch {session.epoch + 1} were skipped; metrics.jsonl says why")
    ranks.sum_([place.totals[1:]])  # every rank has the loss of the whole batch already
    train_loss, train_accuracy = (place.totals / place.counted).tolist()
    session.seconds = before + perf_counter() - start
    with casting(device, session.precision):
        test_loss, test_accuracy = evaluate(session.model, session.loss, data.test_x, data.test_y, ranks)
    session.epoch, session.place = session.epoch + 1, None
    session.best = max(session.best, test_accuracy)
    session.last = {
        "kind": "epoch", "epoch": session.epoch, "step": session.step, "train_loss": train_loss,
        "train_accuracy": train_accuracy, "test_loss": test_loss, "test_accuracy": test_accuracy,
        "seconds": session.seconds, "skipped": place.skipped,
    }  # fmt: skip
    return session.last


def casting(device: torch.device, precision: Precision) -> torch.autocast:
    """Make the context in which matrix products and convolutions take the precision asked for."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def evaluate(
    model: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, ranks: Ranks | None = None
) -> tuple[float, float]:
    """Compute loss and accuracy on labelled data."""
    model.eval()
    n, total, right = len(y), 0.0, 0
    if ranks is not None:
        x, y = x[ranks.rank :: ranks.size], y[ranks.rank :: ranks.size]
    with torch.no_grad():
        for inputs, labels in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
            if len(labels) == 0:  # fewer samples than ranks
                continue
            output = model(inputs)
            total += float(loss(at_least_float32(output), labels)) * len(labels)
            right += int((output.argmax(1) == labels).sum())
    if ranks is not None:
        sums = torch.tensor([total, right], dtype=torch.double, device=x.device)
        ranks.sum_([sums])
        total, right = sums.tolist()
    if not abs(total) < float("inf"):
        raise FloatingPointError("the test loss is NaN or infinite; lower the learning rate")
    return total / n, right / n


def _step_record(session: Session, report: StepReport, accuracy: float) -> dict[str, Any]:
    asked = {name for name, norm in report.target_norms.items() if norm > 0}
    residuals = {name: residual for name, residual in report.residuals().items() if name in asked}
    return {
        "kind": "step",
        "epoch": session.epoch + 1,
        "step": session.step,
        "lr": session.optimizer.param_groups[0]["lr"],
        "loss": float(report.loss),
        "accuracy": accuracy,
        "decoder_loss": None if report.decoder_loss is None else float(report.decoder_loss),
        "residual": sum(residuals.values()) / len(residuals) if residuals else None,
        "residuals": residuals,
        "diverged": {name: float(outcome.diverged.double().mean()) for name, outcome in report.outcomes.items()},
        "fallback": report.shares(Status.FALLBACK),
        "delta_norms": {name: float(norm) for name, norm in report.delta_norms.items()},
        "seconds": session.seconds,
    }
