"""``targetprop verify``: measures the claims and writes the table, the records, the figures and one page."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from shutil import get_terminal_size
from time import perf_counter

import torch

from targetprop.claims import CLAIMS, Claim, merge
from targetprop.claims.figures import FIGURES
from targetprop.claims.page import render_claims
from targetprop.claims.table import format_table
from targetprop.experiments.errors import FAILURE, make_folder, suggest, writing_into
from targetprop.experiments.options import read_request
from targetprop.experiments.progress import error_console
from targetprop.runs.atomic import write_atomic
from targetprop.runs.encode import encode_json
from targetprop.settings import check_ranges, check_types

RECORDS, PAGE = "claims.json", "claims.html"


@dataclass(frozen=True)
class Request:
    """Measures the claims of Bengio 2020 (arXiv:2007.15139) with the library's own parts, on no downloaded data.

    Prints a table; writes claims.json, a figure per claim and claims.html into a folder, replacing what an earlier
    verify wrote there. Exit status: 0, or 1 where a claim fails that should hold.

    Attributes:
        claim: the one claim to measure; null measures all.
        seeds: measure with seeds 0 to N − 1 and give the lowest and the highest value.
        out: folder of the results.
    """

    claim: str | None = None
    seeds: int = 1
    out: str = "claims"

    def __post_init__(self) -> None:
        """Check the request; a wrong one raises `ValueError`."""
        check_types(self, "--")
        check_ranges(self, "--", seeds=(self.seeds >= 1, "a whole number ≥ 1"))
        if self.claim not in (None, *CLAIMS):
            raise ValueError(f"unknown claim {self.claim!r}; {suggest(self.claim, CLAIMS)}")


def verify(argv: list[str]) -> int:
    """Run the command."""
    (request,) = read_request(argv, "targetprop verify [options]", Request, notes=f"claims: {', '.join(CLAIMS)}")
    out = make_folder(request.out)
    with _one_thread():
        found = _measure_all(request)
    with writing_into(out):
        figures = [FIGURES[claim.name](claim) for claim in found]
        for claim, figure in zip(found, figures, strict=True):
            figure.savefig(out / f"{claim.name}.png", dpi=150)
        records = [{"verdict": claim.verdict} | asdict(claim) for claim in found]
        write_atomic(out / RECORDS, encode_json(records))
        write_atomic(out / PAGE, render_claims(found, figures).encode())
    width = get_terminal_size((140, 24)).columns
    sys.stdout.write(format_table(found, width) + f"\nThe page with all figures: {out / PAGE}\n")
    failed = [claim.name for claim in found if claim.verdict == "fails" and claim.should_hold]
    if failed:
        sys.stdout.write(f"These fail where they should hold: {', '.join(failed)}\n")
    return FAILURE if failed else 0


def _measure_all(request: Request) -> list[Claim]:
    console, found = error_console(), []
    names = [request.claim] if request.claim else list(CLAIMS)
    for number, name in enumerate(names, start=1):
        with console.status(f"measuring {name}, {number} of {len(names)}"):
            claim = measure(name, range(request.seeds))
        console.print(f"{name}: {claim.verdict}, {claim.seconds:.1f} s", soft_wrap=True)
        found.append(claim)
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    """With matrices this small, a second thread costs more than it brings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def measure(name: str, seeds: range) -> Claim:
    """Measure one claim."""
    claims = []
    for seed in seeds:
        start = perf_counter()
        claims.append(replace(CLAIMS[name](seed), seconds=perf_counter() - start))
    return merge(claims)
