"""``curves.png``: loss, accuracy and inversion residual of one run, from its folder."""

from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from targetprop.report.style import COLOURS
from targetprop.runs.atomic import write_atomic
from targetprop.runs.read import read_metrics, read_summary
from targetprop.runs.status import read_status


def draw_curves(run: Path) -> Path:
    """Draw the curves of a run."""
    summary, records = read_summary(run), read_metrics(run)
    epochs = [record for record in records if record["kind"] == "epoch"]
    steps = [record for record in records if record["kind"] == "step" and record["residual"] is not None]
    figure = Figure(figsize=(12.5 if steps else 8.5, 3.8), layout="constrained")
    axes = figure.subplots(1, 3 if steps else 2)
    _draw_epochs(axes[0], epochs, "loss", "cross-entropy (nats per sample)")
    axes[0].set_yscale("log")
    _draw_epochs(axes[1], epochs, "accuracy", "accuracy (% of samples)")
    axes[1].yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    if steps:
        _draw_residuals(axes[2], steps)
    title = f"{summary['method']} on {summary['data']}, seed {summary['seed']}"
    if summary["test_accuracy"] is not None:
        title += f": test accuracy {summary['test_accuracy']:.2%} after epoch {summary['epochs']}"
    word = read_status(run).word
    figure.suptitle(title if word in ("finished", "running") else f"{title} ({word})")
    path, picture = run / "curves.png", BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomic(path, picture.getvalue())
    return path


def _draw_epochs(axes: Axes, epochs: list[dict[str, Any]], quantity: str, label: str) -> None:
    numbers = [record["epoch"] for record in epochs]
    parts = (("train", COLOURS[0]), ("validation", COLOURS[2]), ("test", COLOURS[1]))
    for part, colour in parts:
        values: list[Any] = [record.get(f"{part}_{quantity}") for record in epochs]
        if values and values[-1] is None:  # nothing was held out
            continue
        axes.plot(numbers, values, color=colour, marker=_marker(values), label=part)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _frame(axes, "epoch", label)


def _draw_residuals(axes: Axes, steps: list[dict[str, Any]]) -> None:
    names = list(steps[-1]["residuals"])[::-1]
    for index, name in enumerate(names):
        shade = 0.75 * index / max(1, len(names) - 1)
        values = [record["residuals"].get(name) for record in steps]
        style: dict[str, Any] = {
            "color": (shade, 0.45, 1 - shade),
            "marker": _marker(values),
            "label": "all layers" if name == "all" else f"layer {name}",
        }
        axes.plot([record["step"] for record in steps], values, **style)
    axes.axhline(1.0, color="grey", linestyle=":", label="no inversion")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    _frame(axes, "step", "inversion residual ‖t − f(x)‖ / ‖t − y₀‖")


def _frame(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.legend()


def _marker(values: list[Any]) -> str:
    return "." if len(values) <= 50 else ""
