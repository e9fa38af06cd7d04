"""Lets the disk be full at every sixth call of a run that changes files, once or from there on, and makes it small.

A run must end with status 1 and a sentence that names the disk's trouble and the way on; with space again it goes on
to the same end as a run that was never disturbed.
"""

import os
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from reliability.faults import FaultyOs, count_calls, no_space
from reliability.runs import (
    RECIPES,
    check_whole,
    content,
    differences,
    finish,
    fresh,
    quick_curves,
    start,
    train,
    whole_run,
)
from targetprop.runs.status import read_status

RECIPE, SHARE, FAST_SHARE = "short", 6, 47
_SMALL_DISK = """
import sys
from targetprop.experiments.main import main
sys.exit(main(sys.argv[1:]))
"""


def measure(fast: bool) -> dict[str, Any]:
    """Fill the disk at every call or at a few; returns the figures."""
    figures: dict[str, Any] = {"full_once": 0, "full_from_there_on": 0, "unharmed": 0, "equal": 0, "failures": []}
    with TemporaryDirectory() as name, quick_curves(fast):
        folder = Path(name)
        calls = count_calls(lambda: whole_run(folder, RECIPE))
        for lasting in (False, True):
            for place in range(1, calls + 1, FAST_SHARE if fast else SHARE):
                figures["full_from_there_on" if lasting else "full_once"] += 1
                judge(figures, f"call {place}", *one_place(folder, place, lasting))
        figures["file_size_limits"] = 0
        for limit in (3000, 12000) if fast else (3000, 6000, 12000, 24000, 48000):
            figures["file_size_limits"] += 1
            judge(figures, f"files of {limit} bytes", *small_files(folder, limit))
        figures["small_disks"] = 0 if fast else small_disks(folder, figures)
    return figures


def judge(figures: dict[str, Any], place: str, harmed: bool, problem: str | None) -> None:
    """Count a run."""
    figures["unharmed"] += not harmed
    figures["equal"] += problem is None
    if problem is not None:
        figures["failures"].append(f"{place}: {problem}")


def one_place(folder: Path, place: int, lasting: bool) -> tuple[bool, str | None]:
    """Fill the disk at one call and let the run go on; returns whether the run noticed, and what is wrong."""
    run, log = fresh(folder / "run"), folder / "log"
    log.unlink(missing_ok=True)
    status = finish(start(train(run, RECIPE), log, FaultyOs(place, no_space, lasting).install))
    return go_on(folder, run, status, log)


def small_files(folder: Path, limit: int) -> tuple[bool, str | None]:
    """Train where the system itself refuses files of more than some bytes."""
    run, log = fresh(folder / "run"), folder / "log"
    log.unlink(missing_ok=True)
    arguments = (resource.RLIMIT_FSIZE, (limit, limit))
    status = finish(start(train(run, RECIPE), log, lambda: resource.setrlimit(*arguments)))
    return go_on(folder, run, status, log)


def go_on(folder: Path, run: Path, status: int, log: Path) -> tuple[bool, str | None]:
    """Check what a full disk has left, and resume; returns whether the run noticed, and what is wrong."""
    said = log.read_text()
    sentence = said.strip().splitlines()[-1] if said.strip() else ""
    if status not in (0, 1) or "Traceback" in said:
        return True, f"status {status}: {said[-300:]}"
    told = "space" in sentence or "too large" in sentence
    if status == 1 and not (sentence.startswith("targetprop: ") and told):
        return True, f"it said {sentence!r}"
    try:
        check_whole(run)
    except Exception as error:
        return True, str(error)
    if status == 1 and (run / "summary.json").exists() and read_status(run).word not in ("failed", "killed"):
        return True, f"the status reads {read_status(run).word!r}"
    if status == 1 and finish(start(train(run, RECIPE), log)) != 0:
        return True, f"going on failed: {log.read_text()[-300:]}"
    different = differences(whole_run(folder, RECIPE), content(run))
    return status == 1, f"it differs in {', '.join(different)}" if different else None


def small_disks(folder: Path, figures: dict[str, Any]) -> int:
    """Train on file systems of a few KiB, where this machine lets anyone mount one; returns how many there were."""
    place, count = folder / "disk", 0
    place.mkdir()
    for size in ("16k", "48k"):
        mount = f'mount -t tmpfs -o size={size} none {place} && exec "$@"'
        command = ["unshare", "-rm", "sh", "-c", mount, "sh", sys.executable, "-c", _SMALL_DISK]
        out = ["train", *RECIPES[RECIPE], "--out", str(place / "run")]
        try:
            done = subprocess.run([*command, *out], capture_output=True, text=True, env=os.environ, check=False)
        except FileNotFoundError:
            return count
        if "unshare" in done.stderr or "mount" in done.stderr:
            return count
        count += 1
        told = done.returncode == 1 and "No space left" in done.stderr and "Traceback" not in done.stderr
        if not told:
            figures["failures"].append(f"disk of {size}: status {done.returncode}: {done.stderr[-300:]}")
    return count
