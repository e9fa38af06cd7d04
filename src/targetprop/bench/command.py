"""``targetprop bench``: tunes competitors on an equal budget, confirms them at full length, and compares them."""

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any, get_type_hints

from targetprop.bench.competitors import COMPETITORS, Competitor
from targetprop.bench.entry import Entry, read_settings
from targetprop.bench.figure import draw
from targetprop.bench.problems import PROBLEMS, Problem, Task
from targetprop.bench.results import Outcome, as_values, format_table, reference_of, rows
from targetprop.bench.run import History, train
from targetprop.bench.timing import alternate
from targetprop.bench.tune import tune
from targetprop.experiments.arguments import read_command_line
from targetprop.experiments.errors import FAILURE, CommandError, suggest
from targetprop.experiments.memory import fitting
from targetprop.experiments.number_range import check_numbers
from targetprop.experiments.options import attribute_texts
from targetprop.experiments.progress import Steps, say
from targetprop.runs.atomic import append, write_atomic
from targetprop.runs.encode import encode_json, encode_line
from targetprop.settings import check_ranges, check_types

RUNS, RESULT, TABLE, CURVES = "runs.jsonl", "result.json", "table.md", "curves.png"
_OWN = ("competitors", "trials", "seeds", "length", "settings", "out")


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        problem: the problem.
        entries: those that compete, NAME or NAME@SHARE: the share of the steps after which its schedule ends.
        trials: tuning runs of each.
        seeds: runs at full length of each, with seeds 0, 1, 2, …
        length: length of a tuning run, as a share of the problem's steps.
        settings: a result.json whose settings are taken; those it holds are not tuned.
        out: folder of the results.
    """

    problem: Problem
    entries: tuple[Entry, ...] = tuple(map(Entry.read, COMPETITORS))
    trials: int = 10
    seeds: int = 3
    length: float = 0.1
    settings: Mapping[str, Competitor] = field(default_factory=dict)
    out: Path = Path("bench")

    def __post_init__(self) -> None:
        """Check the budget; a wrong one raises `ValueError`."""
        check_types(self, "--")
        check_ranges(
            self, "--",
            trials=(self.trials >= 1, "a whole number ≥ 1"),
            seeds=(self.seeds >= 1, "a whole number ≥ 1"),
            length=(0 < self.length <= 1, "a number in (0, 1]"),
        )  # fmt: skip

    def tuning_steps(self, entry: Entry) -> int:
        """Count the steps of a tuning run, at most those of its full run."""
        return max(1, round(min(self.length, entry.share) * self.problem.steps))


def bench(argv: list[str]) -> int:
    """Run the command."""
    request = read_request(argv)
    if request is None:
        sys.stdout.write(_usage())
        return 0
    _make_folder(request.out)
    with fitting(f"{request.problem.name} with these competitors"):
        return _compete(request)


def _compete(request: Request) -> int:
    start = perf_counter()
    task, reference = request.problem.load(), reference_of([entry.label for entry in request.entries])
    tuned = {entry.label: _tune(request, task, entry) for entry in request.entries}
    outcomes = {
        entry.label: Outcome(tuned[entry.label], _confirm(request, task, entry, tuned[entry.label]))
        for entry in request.entries
    }
    say("timing by turns")
    times = alternate(request.problem, task, tuned, reference)
    table, budget = rows(outcomes, times), _budget(request, perf_counter() - start)
    text = f"{format_table(table, reference)}\n{budget}\n"
    values = {"problem": {"name": request.problem.name, **asdict(request.problem)}, "budget": budget, "table": table}
    try:
        write_atomic(request.out / RESULT, encode_json({**values, "competitors": as_values(outcomes)}))
        write_atomic(request.out / TABLE, text.encode())
        draw(outcomes, times, f"{request.problem.name}, mean of {request.seeds} seeds").savefig(
            request.out / CURVES, dpi=120
        )
    except OSError as error:
        raise CommandError(f"the results cannot be written into {request.out} ({error})", FAILURE) from error
    sys.stdout.write(text + f"curves and all numbers: {request.out}\n")
    return 0


def read_request(argv: list[str]) -> Request | None:
    """Read the arguments."""
    named = bool(argv) and not argv[0].startswith("-")
    arguments = read_command_line(argv[1:] if named else argv, "bench")
    if "help" in arguments.flags:
        return None
    if not named or argv[0] not in PROBLEMS:
        hint = suggest(argv[0], PROBLEMS) if named else f"choose one of {', '.join(PROBLEMS)}"
        raise CommandError(f"targetprop bench needs a problem; {hint}")
    kind, values = PROBLEMS[argv[0]], arguments.values
    hints = get_type_hints(kind)
    kinds = {f.name: hints[f.name] for f in fields(kind)}
    for name in values:
        if name not in (*_OWN, *kinds):
            options = ", ".join(f"--{option}" for option in (*_OWN, *kinds))
            raise CommandError(f"{argv[0]} has no option --{name}; its options are {options}")
    numbers = {n: _convert(n, values[n], float if n == "length" else int) for n in _OWN[1:4] if n in values}
    settings = read_settings(Path(values["settings"]).expanduser()) if "settings" in values else {}
    names = values.get("competitors", ",".join(settings or COMPETITORS)).replace(",", " ").split()
    out = Path(values.get("out", f"bench/{argv[0]}")).expanduser()
    entries = tuple(map(Entry.read, dict.fromkeys(names)))
    try:
        problem = kind(**{n: _convert(n, text, kinds[n]) for n, text in values.items() if n in kinds})
        return Request(problem, entries, settings=settings, out=out, **numbers)
    except ValueError as error:
        raise CommandError(str(error)) from error


def _convert(name: str, text: str, kind: Any) -> Any:
    if kind not in (int, float):
        return text
    try:
        number = kind(text)
    except ValueError as error:
        meaning = "a whole number" if kind is int else "a number"
        raise CommandError(f"--{name} must be {meaning}; got {text!r}") from error
    check_numbers({name: number})
    return number


def _tune(request: Request, task: Task, entry: Entry) -> Competitor:
    label, best = entry.label, inf
    if label in request.settings:
        return request.settings[label]

    def tell(number: int, loss: float) -> None:
        nonlocal best
        best = min(best, loss)
        say(f"{label}: trial {number}/{request.trials}, loss {loss:.4g}, best of this call {best:.4g}")

    first, steps = COMPETITORS[entry.name], request.tuning_steps(entry)
    with Steps(f"{label}: tuning") as progress:
        return tune(request.problem, task, entry.name, first, steps, request.trials, request.out, tell, progress)


def _confirm(request: Request, task: Task, entry: Entry, competitor: Competitor) -> list[History]:
    """Run every seed at full length, or take the run from an earlier call."""
    known, found = _read_runs(request.out / RUNS), []
    problem = replace(request.problem, steps=entry.steps(request.problem))
    for seed in range(request.seeds):
        settings = {"problem": {**asdict(problem), "root": None}, **competitor.settings()}
        key = json.dumps([entry.name, seed, settings], sort_keys=True)
        if key not in known:
            with Steps(f"{entry.label}: seed {seed}") as progress:
                known[key] = train(problem, task, competitor, seed, problem.steps, progress)
            record = {"key": key, "name": entry.name, "seed": seed, **asdict(known[key])}
            append(request.out / RUNS, encode_line(record))
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


def _budget(request: Request, seconds: float) -> str:
    """Say what each competitor was given."""
    tuned = [entry for entry in request.entries if entry.label not in request.settings]
    text = f"{request.seeds} seeds of {_span(entry.steps(request.problem) for entry in request.entries)} steps"
    if tuned:
        settings = _span(len(COMPETITORS[entry.name].space) for entry in tuned)
        steps = _span(request.tuning_steps(entry) for entry in tuned)
        text = f"{request.trials} trials of {steps} steps over {settings} settings, then {text}"
    if len(tuned) < len(request.entries):
        text += "; settings from an earlier result where it has them"
    return f"Budget of each competitor: {text}. This call took {seconds:.0f} s."


def _span(numbers: Iterable[int]) -> str:
    return "/".join(map(str, sorted(set(numbers), reverse=True)))


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--out {out} cannot be made ({error}); give another folder") from error


def _usage() -> str:
    helps = attribute_texts(Request)
    helps["competitors"] = helps["entries"]
    lines = ["usage: targetprop bench PROBLEM [options]", "", (__doc__ or "").partition("\n")[0], "", "problems:"]
    for name, kind in PROBLEMS.items():
        own = ", ".join(f"--{f.name}" for f in fields(kind))
        lines.append(f"  {name:<18} {(kind.__doc__ or '').partition(chr(10))[0]} Options: {own}")
    lines += ["", f"competitors: {', '.join(COMPETITORS)}", "", "options:"]
    lines += [f"  --{name:<16} {helps[name]}" for name in _OWN]
    return "\n".join([*lines, "", "A second call with the same --out goes on where the first was stopped.", ""])
