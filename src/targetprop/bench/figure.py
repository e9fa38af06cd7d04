"""``curves.png``: training loss of every competitor against steps and against seconds."""

from collections.abc import Mapping
from math import isfinite
from statistics import fmean

from matplotlib import colormaps
from matplotlib.figure import Figure

from targetprop.bench.results import Outcome
from targetprop.bench.timing import Times


def draw(outcomes: Mapping[str, Outcome], times: Times, title: str) -> Figure:
    """Draw the mean over the seeds, smoothed as in the table; diverged runs are left out."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    by_step, by_second = figure.subplots(1, 2, sharey=True)
    for place, (name, outcome) in enumerate(outcomes.items()):
        runs = [run for run in outcome.runs if not run.diverged]
        if not runs:
            continue
        losses = [fmean(values) for values in zip(*(run.smooth() for run in runs), strict=True)]
        seconds = [times.seconds[name] * step for step in range(1, len(losses) + 1)]
        style = {"label": name, "color": colormaps["tab10"](place % 10), "linewidth": 1.4}
        by_step.plot(range(1, len(losses) + 1), losses, **style)
        by_second.plot(seconds, losses, **style)
    by_step.set(xlabel="step", ylabel="training loss")
    by_second.set(xlabel="seconds, steps times the time of a step measured by turns")
    if all(isfinite(v) and v > 0 for o in outcomes.values() for r in o.runs if not r.diverged for v in r.losses):
        by_step.set_yscale("log")
    if by_second.lines:
        by_second.legend(frameon=False)
    figure.suptitle(title)
    return figure
