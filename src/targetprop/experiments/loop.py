"""The one training loop: what fills ``.grad`` is an argument, target propagation or the matched baseline."""

from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from targetprop import Status, StepReport
from targetprop.experiments.data import Dataset
from targetprop.experiments.distributed import Processes
from targetprop.experiments.epoch_progress import EpochProgress, begin_epoch
from targetprop.experiments.state import Precision, TrainState
from targetprop.precision import at_least_float32

EVALUATION_BATCH = 1024


class Watcher(Protocol):
    """What the loop tells about its steps."""

    def on_step(self, record: dict[str, Any] | None) -> None:
        """Hear of a step; the record is None where nothing was measured."""
        ...

    def on_skip(self, record: dict[str, Any]) -> None:
        """Hear of a step that was skipped."""
        ...


def run_epoch(state: TrainState, data: Dataset, batch_size: int, log_every: int, watcher: Watcher) -> dict[str, Any]:
    """Train to the end of the epoch and evaluate.

    A step whose numbers are not finite is skipped and counted; weights and schedule stay where they are.
    """
    state.model.train()
    start, before = perf_counter(), state.seconds
    device, own = data.train_x.device, state.processes.rows
    progress = state.epoch_progress = state.epoch_progress or begin_epoch(state.order, device)
    order = torch.randperm(len(data.train_x), generator=state.order).to(device)
    augment = data.augmentation.begin_epoch(state.order, device, own)
    progress.enter(augment)
    for batch in order.split(batch_size)[progress.batches :]:
        x, y = augment(data.train_x[batch[own]], len(batch)), data.train_y[batch[own]]
        state.step += 1
        measure = state.step == 1 or state.step % log_every == 0
        state.optimizer.zero_grad()
        with casting(device, state.precision):
            report = state.engine.backward(x, y, measure=measure and not state.engine.method.straight)
        state.seconds, record = before + perf_counter() - start, None
        if report.skipped is None:
            record = _take_step(state, progress, report, y, len(batch), measure)
        else:
            progress.skipped += 1
            at = {"epoch": state.epoch + 1, "step": state.step}
            watcher.on_skip({"kind": "skip", **at, "reason": report.skipped})
        state.observe(report.skipped)
        progress.advance(augment)
        watcher.on_step(record)
    if not progress.counted:
        raise FloatingPointError(f"all steps of epoch {state.epoch + 1} were skipped; metrics.jsonl says why")
    state.seconds = before + perf_counter() - start
    return _end_epoch(state, progress, data)


def casting(device: torch.device, precision: Precision) -> torch.autocast:
    """Make the context in which matrix products and convolutions take the precision asked for."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def evaluate(
    model: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, processes: Processes | None = None
) -> tuple[float, float]:
    """Compute loss and accuracy on labelled data."""
    processes = processes or Processes()
    model.eval()
    n, total, right = len(y), 0.0, 0
    x, y = x[processes.rows], y[processes.rows]
    with torch.no_grad():
        for inputs, labels in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
            if len(labels) == 0:  # fewer samples than ranks
                continue
            output = model(inputs)
            total += float(loss(at_least_float32(output), labels)) * len(labels)
            right += int((output.argmax(1) == labels).sum())
    sums = torch.tensor([total, right], dtype=torch.double, device=x.device)
    processes.sum_(sums)
    total, right = sums.tolist()
    if not abs(total) < float("inf"):
        raise FloatingPointError("the loss in evaluation is NaN or infinite; lower the learning rate")
    return total / n, right / n


def _take_step(
    state: TrainState, progress: EpochProgress, report: StepReport, y: Tensor, samples: int, measure: bool
) -> dict[str, Any] | None:
    """Let the optimiser act on the gradients, and describe the step if it was measured."""
    state.optimizer.step()
    right = (report.output.argmax(1) == y).sum()
    progress.count(report.loss, right, samples)
    record = None
    if measure:
        state.processes.sum_(right)
        record = _step_record(state, report, float(right) / samples)
    state.schedule.step()
    return record


def _end_epoch(state: TrainState, progress: EpochProgress, data: Dataset) -> dict[str, Any]:
    state.processes.sum_(progress.right)  # every rank has the loss of the whole batch already
    with casting(data.test_x.device, state.precision):
        test_loss, test_accuracy = evaluate(state.model, state.loss, data.test_x, data.test_y, state.processes)
        held_out = _evaluate_held_out(state, data)
    state.epoch, state.epoch_progress = state.epoch + 1, None
    state.best = max(state.best, test_accuracy)
    state.last = {
        "kind": "epoch",
        "epoch": state.epoch,
        "step": state.step,
        "train_loss": float(progress.loss) / progress.counted,
        "train_accuracy": float(progress.right) / progress.counted,
        **held_out,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "seconds": state.seconds,
        "skipped": progress.skipped,
    }
    return state.last


def _evaluate_held_out(state: TrainState, data: Dataset) -> dict[str, float]:
    """Compute loss and accuracy on training samples that were held out, if any were."""
    if data.validation_x is None or data.validation_y is None:
        return {}
    loss, accuracy = evaluate(state.model, state.loss, data.validation_x, data.validation_y, state.processes)
    return {"validation_loss": loss, "validation_accuracy": accuracy}


def _step_record(state: TrainState, report: StepReport, accuracy: float) -> dict[str, Any]:
    asked = {name for name, norm in report.target_norms.items() if norm > 0}
    residuals = {name: residual for name, residual in report.residuals().items() if name in asked}
    return {
        "kind": "step",
        "epoch": state.epoch + 1,
        "step": state.step,
        "lr": state.optimizer.param_groups[0]["lr"],
        "loss": float(report.loss),
        "accuracy": accuracy,
        "decoder_loss": None if report.decoder_loss is None else float(report.decoder_loss),
        "residual": sum(residuals.values()) / len(residuals) if residuals else None,
        "residuals": residuals,
        "diverged": {name: float(outcome.diverged.double().mean()) for name, outcome in report.outcomes.items()},
        "fallback": report.shares(Status.FALLBACK),
        "delta_norms": {name: float(norm) for name, norm in report.delta_norms.items()},
        "seconds": state.seconds,
    }
