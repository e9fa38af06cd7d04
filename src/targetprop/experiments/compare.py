"""``targetprop compare``: runs side by side, as a table, a figure and a page."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import takewhile
from pathlib import Path

from targetprop.experiments.errors import FAILURE, CommandError, make_folder, writing_into
from targetprop.experiments.options import read_request
from targetprop.experiments.resume import read_stored_values
from targetprop.report.comparison import Run, compare_runs
from targetprop.report.comparison_figure import draw_comparison
from targetprop.report.comparison_page import render_comparison
from targetprop.report.comparison_table import format_comparison
from targetprop.runs.atomic import write_atomic
from targetprop.runs.folder import CONFIG
from targetprop.runs.read import SUMMARY, read_metrics, read_summary
from targetprop.runs.status import read_status
from targetprop.settings import check_types

PICTURE, PAGE = "compare.png", "compare.html"


@dataclass(frozen=True)
class Request:
    """Shows runs side by side: what differs between their configurations, what they reached, and how long they took.

    RUN is the folder of a run, or a folder that holds runs; files are passed over, so that runs/* is all that lies
    there. Prints a table, best first by the last loss, and writes compare.png and compare.html into a folder, replacing
    what an earlier compare wrote there. Runs that differ in their seed alone are one row: the mean with the lowest and
    the highest value, in the figure a line in a band.

    Attributes:
        out: folder of the results.
    """

    out: str = "compare"

    def __post_init__(self) -> None:
        """Check the request; a wrong one raises `ValueError`."""
        check_types(self, "--")


def compare(argv: list[str]) -> int:
    """Run the command."""
    words = list(takewhile(lambda word: not word.startswith("-"), argv))
    (request,) = read_request(argv[len(words) :], "targetprop compare RUN [RUN …] [--out DIR]", Request)
    if not words:
        raise CommandError("targetprop compare needs the folders of runs, such as runs/*")
    runs = find_runs(Path(word).expanduser() for word in words)
    write_comparison(runs, make_folder(request.out))
    return 0


def find_runs(places: Iterable[Path]) -> list[Path]:
    """List the run folders among some places and in them, each once."""
    found: dict[Path, Path] = {}
    for place in places:
        if place.is_file():
            continue
        if not place.is_dir():
            raise CommandError(f"{place} does not exist; give the folders of runs, such as runs/*")
        inside = sorted(path for path in place.iterdir() if is_run(path))
        if not is_run(place) and not inside:
            problem = f"{place} is not a run folder, it has no {CONFIG}, and holds none"
            raise CommandError(f"{problem}; give folders that targetprop train wrote")
        found |= {path.resolve(): path for path in ([place] if is_run(place) else inside)}
    if not found:
        raise CommandError("there are files only and no runs; give the folders of runs, such as runs/*")
    return list(found.values())


def is_run(path: Path) -> bool:
    """Tell whether a folder is a run's."""
    return (path / CONFIG).is_file()


def write_comparison(paths: Sequence[Path], out: Path) -> None:
    """Compare runs: print the table, and write the figure and the page."""
    comparison, picture = compare_runs([read_run(path) for path in paths]), BytesIO()
    draw_comparison(comparison).savefig(picture, format="png", dpi=120)
    with writing_into(out):
        write_atomic(out / PICTURE, picture.getvalue())
        write_atomic(out / PAGE, render_comparison(comparison).encode())
    sys.stdout.write(f"{format_comparison(comparison)}\n\nfigure: {out / PICTURE}\npage: {out / PAGE}\n")


def read_run(path: Path) -> Run:
    """Read what a run folder says."""
    config = read_stored_values(path, "targetprop compare")
    try:
        summary = read_summary(path) if (path / SUMMARY).exists() else {}
        epochs = [record for record in read_metrics(path) if record.get("kind") == "epoch"]
    except (OSError, ValueError) as error:
        raise CommandError(f"{path} cannot be read: {error}", FAILURE) from error
    # The device that "auto" found is what tells two runs apart.
    config |= {"device": summary["device"]} if "device" in summary else {}
    return Run(path, config, read_status(path), summary, epochs)
