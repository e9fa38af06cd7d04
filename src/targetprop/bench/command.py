"""``targetprop bench``: tunes competitors on an equal budget, confirms them at full length, and compares them."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any, get_type_hints

from targetprop.bench.competitors import COMPETITORS, Competitor
from targetprop.bench.figure import draw
from targetprop.bench.problems import PROBLEMS, Problem, Task
from targetprop.bench.results import Outcome, as_values, format_table, reference_of, rows
from targetprop.bench.run import History, train
from targetprop.bench.timing import alternate
from targetprop.bench.tune import tune
from targetprop.experiments.arguments import read_command_line
from targetprop.experiments.errors import FAILURE, CommandError, suggest
from targetprop.experiments.options import attribute_texts
from targetprop.experiments.run_folder import encode_json, write_atomic
from targetprop.experiments.screen import say

RUNS, RESULT, TABLE, CURVES = "runs.jsonl", "result.json", "table.md", "curves.png"
_OWN = ("competitors", "trials", "seeds", "length", "out")


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        problem: the problem.
        competitors: names of those that compete.
        trials: tuning runs of each.
        seeds: runs at full length of each, with seeds 0, 1, 2, …
        length: length of a tuning run, as a share of the full one.
        out: folder of the results.
    """

    problem: Problem
    competitors: tuple[str, ...] = tuple(COMPETITORS)
    trials: int = 10
    seeds: int = 3
    length: float = 0.1
    out: Path = Path("bench")

    def __post_init__(self) -> None:
        """Check the budget.

        Raises:
            CommandError: a number is out of its range, or a competitor does not exist.
        """
        if self.trials < 1 or self.seeds < 1 or not 0 < self.length <= 1:
            raise CommandError("bench needs --trials ≥ 1, --seeds ≥ 1 and --length in (0, 1]")
        for name in self.competitors:
            if name not in COMPETITORS:
                raise CommandError(f"unknown competitor {name!r}; {suggest(name, COMPETITORS)}")

    @property
    def tuning_steps(self) -> int:
        """Steps of a tuning run."""
        return max(1, round(self.length * self.problem.steps))


def bench(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: its arguments.

    Returns:
        Exit status 0.

    Raises:
        CommandError: an argument is wrong, data is missing, or the results cannot be written.
    """
    request = read_request(argv)
    if request is None:
        sys.stdout.write(_usage())
        return 0
    start = perf_counter()
    _make_folder(request.out)
    task, reference = request.problem.load(), reference_of(request.competitors)
    tuned = {name: _tune(request, task, name) for name in request.competitors}
    outcomes = {name: Outcome(c, _confirm(request, task, name, c)) for name, c in tuned.items()}
    say("timing by turns")
    times = alternate(request.problem, task, tuned, reference)
    table, budget = rows(outcomes, times), _budget(request, perf_counter() - start)
    text = f"{format_table(table, reference)}\n{budget}\n"
    values = {"problem": {"name": request.problem.name, **asdict(request.problem)}, "budget": budget, "table": table}
    try:
        write_atomic(request.out / RESULT, encode_json({**values, "competitors": as_values(outcomes)}))
        write_atomic(request.out / TABLE, text.encode())
        draw(outcomes, f"{request.problem.name}, mean of {request.seeds} seeds").savefig(request.out / CURVES, dpi=120)
    except OSError as error:
        raise CommandError(f"the results cannot be written into {request.out} ({error})", FAILURE) from error
    sys.stdout.write(text + f"curves and all numbers: {request.out}\n")
    return 0


def read_request(argv: list[str]) -> Request | None:
    """Read the arguments.

    Args:
        argv: the problem's name, then options.

    Returns:
        The request; None if help was asked for.

    Raises:
        CommandError: a word, an option or a value is wrong.
    """
    named = bool(argv) and not argv[0].startswith("-")
    arguments = read_command_line(argv[1:] if named else argv, "bench")
    if "help" in arguments.flags:
        return None
    if not named or argv[0] not in PROBLEMS:
        hint = suggest(argv[0], PROBLEMS) if named else f"choose one of {', '.join(PROBLEMS)}"
        raise CommandError(f"targetprop bench needs a problem; {hint}")
    kind, values = PROBLEMS[argv[0]], arguments.values
    kinds = {name: k for name, k in get_type_hints(kind).items() if name in kind.__dataclass_fields__}
    for name in values:
        if name not in (*_OWN, *kinds):
            options = ", ".join(f"--{option}" for option in (*_OWN, *kinds))
            raise CommandError(f"{argv[0]} has no option --{name}; its options are {options}")
    try:
        problem = kind(**{n: _convert(n, text, kinds[n]) for n, text in values.items() if n in kinds})
    except ValueError as error:
        raise CommandError(str(error)) from error
    numbers = {n: _convert(n, values[n], float if n == "length" else int) for n in _OWN[1:4] if n in values}
    names = values.get("competitors", ",".join(COMPETITORS)).replace(",", " ").split()
    out = Path(values.get("out", f"bench/{argv[0]}")).expanduser()
    return Request(problem, tuple(dict.fromkeys(names)), out=out, **numbers)


def _convert(name: str, text: str, kind: Any) -> Any:
    if kind not in (int, float):
        return text
    try:
        return kind(text)
    except ValueError as error:
        meaning = "a whole number" if kind is int else "a number"
        raise CommandError(f"--{name} must be {meaning}; got {text!r}") from error


def _tune(request: Request, task: Task, name: str) -> Competitor:
    best = inf

    def tell(number: int, loss: float) -> None:
        nonlocal best
        best = min(best, loss)
        say(f"{name}: trial {number}/{request.trials}, loss {loss:.4g}, best of this call {best:.4g}")

    first = COMPETITORS[name]
    return tune(request.problem, task, name, first, request.tuning_steps, request.trials, request.out, tell)


def _confirm(request: Request, task: Task, name: str, competitor: Competitor) -> list[History]:
    """Run every seed at full length, or take the run from an earlier call."""
    known, found = _read_runs(request.out / RUNS), []
    for seed in range(request.seeds):
        settings = {"problem": {**asdict(request.problem), "root": None}, **competitor.settings()}
        key = json.dumps([name, seed, settings], sort_keys=True)
        if key not in known:
            known[key] = train(request.problem, task, competitor, seed, request.problem.steps)
            record = json.dumps({"key": key, "name": name, "seed": seed, **asdict(known[key])})
            with (request.out / RUNS).open("a", encoding="utf-8") as file:
                file.write(record + "\n")
        found.append(known[key])
        say(f"{name}: seed {seed}, final loss {found[-1].at(1.0):.4g}")
    return found


def _read_runs(path: Path) -> dict[str, History]:
    """Read finished runs; a last line that was cut off does not count."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record: Mapping[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[record["key"]] = History(record["losses"], record["seconds"], record["measures"])
    return found


def _budget(request: Request, seconds: float) -> str:
    dimensions = sorted({len(COMPETITORS[name].space) for name in request.competitors})
    return (
        f"Budget of each competitor: {request.trials} trials of {request.tuning_steps} steps over"
        f" {'/'.join(map(str, dimensions))} settings, then {request.seeds} seeds of {request.problem.steps} steps."
        f" This call took {seconds:.0f} s."
    )


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--out {out} cannot be made ({error}); give another folder") from error


def _usage() -> str:
    helps = attribute_texts(Request)
    lines = ["usage: targetprop bench PROBLEM [options]", "", (__doc__ or "").partition("\n")[0], "", "problems:"]
    for name, kind in PROBLEMS.items():
        own = ", ".join(f"--{field}" for field in kind.__dataclass_fields__)
        lines.append(f"  {name:<18} {(kind.__doc__ or '').partition(chr(10))[0]} Options: {own}")
    lines += ["", f"competitors: {', '.join(COMPETITORS)}", "", "options:"]
    lines += [f"  --{name:<16} {helps[name]}" for name in _OWN]
    return "\n".join([*lines, "", "A second call with the same --out goes on where the first was stopped.", ""])
