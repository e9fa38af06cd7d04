"""``targetprop bench``: tunes competitors on an equal budget, confirms them at full length, and compares them."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any

from targetprop.bench.competitors import COMPETITORS, Competitor
from targetprop.bench.entry import Entry, read_settings
from targetprop.bench.figure import draw
from targetprop.bench.problems import PROBLEMS, Problem, Task
from targetprop.bench.results import Outcome, as_values, format_table, reference_of, rows
from targetprop.bench.run import History, train
from targetprop.bench.timing import alternate
from targetprop.bench.tune import tune
from targetprop.experiments.errors import CommandError, make_folder, suggest, writing_into
from targetprop.experiments.memory import fitting
from targetprop.experiments.options import read_request
from targetprop.experiments.progress import Steps, say
from targetprop.runs.atomic import append, write_atomic
from targetprop.runs.encode import encode_json, encode_line
from targetprop.settings import check_ranges, check_types

RUNS, RESULT, TABLE, CURVES = "runs.jsonl", "result.json", "table.md", "curves.png"


@dataclass(frozen=True)
class Request:
    """Tunes competitors on an equal budget, confirms them at full length, and compares them.

    A second call with the same --out goes on where the first was stopped. The help of a problem, targetprop bench
    PROBLEM --help, has its own options too.

    Attributes:
        problem: the problem.
        competitors: names with commas between them, NAME or NAME@SHARE: the share of the steps after which its schedule
            ends; null is all, or those of the settings.
        trials: tuning runs of each.
        seeds: runs at full length of each, with seeds 0, 1, 2, …
        length: length of a tuning run, as a share of the problem's steps.
        settings: a result.json whose settings are taken; those it holds are not tuned.
        out: folder of the results; null is bench/PROBLEM.
    """

    problem: str
    competitors: str | None = None
    trials: int = 10
    seeds: int = 3
    length: float = 0.1
    settings: str | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        """Check the budget; a wrong one raises `ValueError`."""
        check_types(self, "--")
        check_ranges(
            self, "--",
            trials=(self.trials >= 1, "a whole number ≥ 1"),
            seeds=(self.seeds >= 1, "a whole number ≥ 1"),
            length=(0 < self.length <= 1, "a number in (0, 1]"),
        )  # fmt: skip


@dataclass(frozen=True)
class Contest:
    """A request with what its names stand for: problem, entries, settings from an earlier result, folder."""

    request: Request
    problem: Problem
    entries: Sequence[Entry]
    known: Mapping[str, Competitor]
    out: Path

    def tuning_steps(self, entry: Entry) -> int:
        """Count the steps of a tuning run, at most those of its full run."""
        return max(1, round(min(self.request.length, entry.share) * self.problem.steps))


def bench(argv: list[str]) -> int:
    """Run the command."""
    contest = read_contest(argv)
    with fitting(f"{contest.problem.name} with these competitors"):
        return _compete(contest)


def read_contest(argv: list[str]) -> Contest:
    """Read the command line, and make the folder of the results."""
    name = argv[0] if argv else ""
    if name not in PROBLEMS and not {"-h", "--help"} & set(argv):
        raise CommandError(f"targetprop bench needs a problem; {suggest(name, PROBLEMS)}")
    kinds = [PROBLEMS[name]] if name in PROBLEMS else []
    notes = f"problems: {', '.join(PROBLEMS)}; competitors: {', '.join(COMPETITORS)}"
    request, problem = read_request(argv, "targetprop bench PROBLEM [options]", Request, *kinds, notes=notes)
    known = read_settings(Path(request.settings).expanduser()) if request.settings else {}
    names = (request.competitors or ",".join(known or COMPETITORS)).replace(",", " ").split()
    entries = tuple(map(Entry.read, dict.fromkeys(names)))
    return Contest(request, problem, entries, known, make_folder(request.out or f"bench/{problem.name}"))


def _compete(contest: Contest) -> int:
    start, problem, entries = perf_counter(), contest.problem, contest.entries
    task, reference = problem.load().to(problem.device), reference_of([entry.label for entry in entries])
    tuned = {entry.label: _tune(contest, task, entry) for entry in entries}
    outcomes = {
        entry.label: Outcome(tuned[entry.label], _confirm(contest, task, entry, tuned[entry.label]))
        for entry in entries
    }
    say("timing by turns")
    times = alternate(problem, task, tuned, reference)
    table, budget = rows(outcomes, times), _budget(contest, perf_counter() - start)
    text = f"{format_table(table, reference)}\n{budget}\n"
    values = {"problem": {"name": problem.name, **asdict(problem)}, "budget": budget, "table": table}
    with writing_into(contest.out):
        write_atomic(contest.out / RESULT, encode_json({**values, "competitors": as_values(outcomes)}))
        write_atomic(contest.out / TABLE, text.encode())
        figure = draw(outcomes, times, f"{problem.name}, mean of {contest.request.seeds} seeds")
        figure.savefig(contest.out / CURVES, dpi=120)
    sys.stdout.write(text + f"curves and all numbers: {contest.out}\n")
    return 0


def _tune(contest: Contest, task: Task, entry: Entry) -> Competitor:
    label, best = entry.label, inf
    if label in contest.known:
        return contest.known[label]

    def tell(number: int, loss: float) -> None:
        nonlocal best
        best = min(best, loss)
        say(f"{label}: trial {number}/{contest.request.trials}, loss {loss:.4g}, best of this call {best:.4g}")

    first, steps = COMPETITORS[entry.name], contest.tuning_steps(entry)
    with Steps(f"{label}: tuning") as progress:
        return tune(
            contest.problem, task, entry.name, first, steps, contest.request.trials, contest.out, tell, progress
        )


def _confirm(contest: Contest, task: Task, entry: Entry, competitor: Competitor) -> list[History]:
    """Run every seed at full length, or take the run from an earlier call."""
    known, found = _read_runs(contest.out / RUNS), []
    problem = replace(contest.problem, steps=entry.steps(contest.problem))
    for seed in range(contest.request.seeds):
        settings = {"problem": {**asdict(problem), "root": None, "device": None}, **competitor.settings()}
        key = json.dumps([entry.name, seed, settings], sort_keys=True)
        if key not in known:
            with Steps(f"{entry.label}: seed {seed}") as progress:
                known[key] = train(problem, task, competitor, seed, problem.steps, progress)
            record = {"key": key, "name": entry.name, "seed": seed, **asdict(known[key])}
            append(contest.out / RUNS, encode_line(record))
        found.append(known[key])
        say(f"{entry.label}: seed {seed}, final loss {found[-1].at(1.0):.4g}")
    return found


def _read_runs(path: Path) -> dict[str, History]:
    """Read finished runs, with infinity for null; a last line that was cut off does not count."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record: Mapping[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            continue
        losses = [inf if loss is None else loss for loss in record["losses"]]
        found[record["key"]] = History(losses, record["seconds"], record["measures"])
    return found


def _budget(contest: Contest, seconds: float) -> str:
    """Say what each competitor was given."""
    tuned = [entry for entry in contest.entries if entry.label not in contest.known]
    text = f"{contest.request.seeds} seeds of {_span(entry.steps(contest.problem) for entry in contest.entries)} steps"
    if tuned:
        settings = _span(len(COMPETITORS[entry.name].space) for entry in tuned)
        steps = _span(contest.tuning_steps(entry) for entry in tuned)
        text = f"{contest.request.trials} trials of {steps} steps over {settings} settings, then {text}"
    if len(tuned) < len(contest.entries):
        text += "; settings from an earlier result where it has them"
    return f"Budget of each competitor: {text}. This call took {seconds:.0f} s."


def _span(numbers: Iterable[int]) -> str:
    return "/".join(map(str, sorted(set(numbers), reverse=True)))
