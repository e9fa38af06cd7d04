"""What a training run shows: progress on the error stream, the summary on the output stream."""

import sys
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

_QUIET = 30.0  # seconds between two lines where there is no terminal


class _Console(Console):
    """The error stream, where a reader who is gone is an error like any other."""

    def on_broken_pipe(self) -> NoReturn:
        raise  # this is called where BrokenPipeError is being handled


def error_console() -> Console:
    """Make a console on the error stream; where nobody reads it any more, it raises `BrokenPipeError`."""
    return _Console(stderr=True, highlight=False)


class _Bar(Progress):
    """A progress bar on a terminal, and nothing anywhere else."""

    def __init__(self, *columns: ProgressColumn) -> None:
        """Prepare the bar."""
        console = error_console()
        columns = (*columns, TextColumn("left"), TimeRemainingColumn())
        hidden = not console.is_terminal
        super().__init__(*columns, console=console, refresh_per_second=4, transient=True, disable=hidden)


class TrainingProgress(_Bar):
    """A progress bar on a terminal, and a line per epoch anywhere else."""

    def __init__(self, epochs: int, steps_per_epoch: int, epochs_done: int, steps_done: int) -> None:
        """Prepare the bar."""
        super().__init__(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
        )
        self._epochs, self._epoch = epochs, epochs_done
        self._loss = self._accuracy = self._test_accuracy = self._residual = "–"
        self._task = self.add_task(
            "train",
            total=epochs * steps_per_epoch,
            completed=steps_done,
            epoch=self._count(),
            numbers=self._numbers(),
        )

    def on_step(self, record: dict[str, Any] | None) -> None:
        """Advance the bar."""
        if record is not None:
            self._loss, self._residual = _number(record["loss"]), _number(record["residual"])
            self._accuracy = f"{record['accuracy']:.1%}"
        self.update(self._task, advance=1, epoch=self._count(), numbers=self._numbers())

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Show the numbers of an epoch."""
        self._epoch, self._loss = record["epoch"], _number(record["train_loss"])
        self._accuracy, self._test_accuracy = f"{record['train_accuracy']:.1%}", f"{record['test_accuracy']:.2%}"
        self.update(self._task, epoch=self._count(), numbers=self._numbers())
        if not self.console.is_terminal:
            left = self.tasks[0].time_remaining
            ending = "" if not left else f", {timedelta(seconds=round(left))} left"
            self.console.print(f"epoch {self._epoch}/{self._epochs}: {self._numbers()}{ending}", soft_wrap=True)

    def _numbers(self) -> str:
        accuracy = f"accuracy {self._accuracy} (test {self._test_accuracy})"
        return f"loss {self._loss}, {accuracy}, residual {self._residual}"

    def _count(self) -> str:
        return f"{min(self._epoch + 1, self._epochs)}/{self._epochs}"


class Steps(_Bar):
    """A bar for one task of many steps on a terminal, and a line twice a minute anywhere else."""

    def __init__(self, title: str, unit: str = "step") -> None:
        """Prepare the bar."""
        super().__init__(TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn())
        self._title, self._unit, self._said = title, unit, monotonic()
        self._task = self.add_task(title, total=None)

    def __call__(self, done: int, steps: int, loss: float | None = None) -> None:
        """Advance."""
        title = self._title if loss is None else f"{self._title}, loss {_number(loss)}"
        self.update(self._task, completed=done, total=steps, description=title)
        if not self.console.is_terminal and monotonic() > self._said + _QUIET:
            self._said = monotonic()
            say(f"{title}, {self._unit} {done}/{steps}")


def say(sentence: str) -> None:
    """Write a remark to the error stream."""
    error_console().print(sentence, soft_wrap=True, markup=False)


def show_summary(summary: dict[str, Any], folder: Path) -> None:
    """Write the end of a run to the output stream."""
    rows = {
        "method": f"{summary['method']}, seed {summary['seed']}, on {summary['device']}",
        "epochs": f"{summary['epochs']} ({summary['steps']} steps{_skipped(summary['skipped_steps'])})",
        "train loss": _number(summary["train_loss"]),
        "test accuracy": f"{summary['test_accuracy']:.2%}, best {summary['best_test_accuracy']:.2%}",
        "time": f"{1e3 * summary['seconds_per_step']:.2f} ms per step",
        "status": summary["status"] + (f", but {summary['reason']}" if summary["reason"] else ""),
        "run folder": str(folder),
    }
    sys.stdout.writelines(f"{name:<14} {text}\n" for name, text in rows.items())


def _skipped(steps: int) -> str:
    return f", {steps} of them skipped" if steps else ""


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
