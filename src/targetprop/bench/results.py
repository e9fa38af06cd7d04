"""What the bench says in the end: a table, and the same numbers with all curves as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, isfinite
from statistics import fmean, median, stdev
from typing import Any

from targetprop.bench.competitors import Competitor
from targetprop.bench.run import History
from targetprop.bench.timing import Times

SHARES = (0.1, 0.25, 0.5)
HEADER = ("competitor", "10 %", "25 %", "50 %", "final", "time/step", "steps to ref", "seconds to ref", "diverged")
TEST = "test "  # what the names of measures on test data begin with


@dataclass(frozen=True)
class Outcome:
    """A competitor's runs."""

    competitor: Competitor  # its tuned settings
    runs: Sequence[History]  # one history per seed

    @property
    def finals(self) -> list[float]:
        """Final training loss per seed; infinite where the run diverged."""
        return [run.at(1.0) for run in self.runs]

    def at(self, share: float) -> float:
        """Average the training loss over the seeds."""
        return fmean(run.at(share) for run in self.runs)

    def steps_to(self, loss: float) -> float:
        """Count the steps to a loss on the mean of the seeds' smoothed curves."""
        curves = zip(*(run.smooth() for run in self.runs), strict=True)
        return next((step for step, values in enumerate(curves, start=1) if fmean(values) <= loss), inf)


def reference_of(names: Sequence[str]) -> str:
    """Choose what the others are compared with: Adam, or the first where it does not compete."""
    return "adam" if "adam" in names else names[0]


def rows(outcomes: Mapping[str, Outcome], times: Times) -> list[dict[str, Any]]:
    """Compute the table.

    Seconds are steps times the time per step measured by turns, so that the load of the machine weighs on all alike.
    """
    goal = outcomes[reference_of(list(outcomes))].at(1.0)
    found = []
    for name, outcome in outcomes.items():
        finals, steps = outcome.finals, outcome.steps_to(goal) if isfinite(goal) else inf
        found.append({
            "competitor": name,
            "shares": [outcome.at(share) for share in SHARES],
            "final": fmean(finals),
            "spread": stdev(finals) if len(finals) > 1 and isfinite(fmean(finals)) else 0.0,
            "ratio": times.ratios[name],
            "steps": steps,
            "seconds": steps * times.seconds[name],
            "diverged": sum(run.diverged for run in outcome.runs),
            "test": {
                name: fmean(run.measures.get(name, inf) for run in outcome.runs)
                for name in outcome.runs[0].measures
                if name.startswith(TEST)
            },
        })  # fmt: skip
    return sorted(found, key=lambda row: row["final"])


def format_table(found: Sequence[Mapping[str, Any]], reference: str) -> str:
    """Write the table."""
    measures = list(dict.fromkeys(name for row in found for name in row["test"]))
    header = [*(title.replace("ref", reference) for title in HEADER), *measures]
    lines = [header, ["---"] * len(header)]
    for row in found:
        lines.append([
            row["competitor"], *map(_number, row["shares"]), f"{_number(row['final'])} ± {_number(row['spread'])}",
            f"{row['ratio']:.2f}", f"{row['steps']:.0f}" if isfinite(row["steps"]) else "never",
            f"{row['seconds']:.1f}" if isfinite(row["seconds"]) else "never", str(row["diverged"]),
            *(_number(row["test"].get(name, inf)) for name in measures),
        ])  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_values(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Write all runs as plain values."""
    return {
        name: {"settings": outcome.competitor.settings(), "runs": [_run_values(run) for run in outcome.runs]}
        for name, outcome in outcomes.items()
    }


def _run_values(run: History) -> dict[str, Any]:
    return {
        "losses": run.losses, "seconds": list(accumulate(run.seconds)), "median step seconds": median(run.seconds),
        "diverged": run.diverged, "measures": run.measures,
    }  # fmt: skip


def _number(value: float) -> str:
    return f"{value:.4g}" if isfinite(value) else "inf"
