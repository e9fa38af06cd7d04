"""Kills a run with SIGKILL at every call that changes files, within a write too, and resumes it."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from reliability.faults import FaultyOs, count_calls, die
from reliability.runs import check_whole, content, differences, finish, fresh, quick_curves, start, train, whole_run
from targetprop.runs.status import read_status

RECIPE, FAST_SHARE = "short", 31


def measure(fast: bool) -> dict[str, Any]:
    """Kill once per run, at every call or at a few; returns the figures."""
    equal, failures = 0, []
    with TemporaryDirectory() as name, quick_curves(fast):
        folder = Path(name)
        calls = count_calls(lambda: whole_run(folder, RECIPE))
        places = range(1, calls + 1, FAST_SHARE if fast else 1)
        for place in places:
            problem = one_place(folder, place)
            equal += problem is None
            failures += [] if problem is None else [f"call {place}: {problem}"]
    return {"calls_that_change_files": calls, "kills": len(places), "equal": equal, "failures": failures}


def one_place(folder: Path, place: int) -> str | None:
    """Kill a run at one call and let it go on; returns what is wrong."""
    run, log = fresh(folder / "run"), folder / "log"
    status = finish(start(train(run, RECIPE), log, FaultyOs(place, die).install))
    if status != -9:
        return f"the run was not killed but ended with status {status}"
    try:
        lost = check_whole(run)
    except Exception as error:
        return str(error)
    if lost is not None and lost > 1:
        return f"{lost} steps are lost"
    finished = (run / "summary.json").exists() and read_status(run).word == "finished"  # the last calls come after it
    status = 0 if finished else finish(start(train(run, RECIPE), log))
    if status != 0:
        return f"going on ended with status {status}: {log.read_text()[-300:]}"
    different = differences(whole_run(folder, RECIPE), content(run))
    return f"it differs in {', '.join(different)}" if different else None
