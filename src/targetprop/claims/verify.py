"""``targetprop verify``: measures the claims and writes the table, the records, the figures and one page."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shutil import get_terminal_size
from time import perf_counter

import torch

from targetprop.claims import CLAIMS, Claim, merge
from targetprop.claims.figures import FIGURES
from targetprop.claims.page import render_page
from targetprop.claims.table import format_table
from targetprop.experiments.arguments import read_command_line
from targetprop.experiments.errors import FAILURE, CommandError, suggest
from targetprop.experiments.number_range import read_count
from targetprop.experiments.run_folder import encode_json
from targetprop.experiments.screen import error_console
from targetprop.report.atomic import write_atomic

RECORDS, PAGE = "claims.json", "claims.html"
_USAGE = f"""usage: targetprop verify [--claim NAME] [--seeds N] [--out DIR]

Measures the claims of Bengio 2020 (arXiv:2007.15139) with the library's own parts, on no downloaded data.
Prints a table; writes {RECORDS}, a figure per claim and {PAGE} into DIR, replacing what an earlier verify wrote there.

options:
  --claim NAME  measure one claim: {", ".join(CLAIMS)}
  --seeds N     measure with seeds 0 to N − 1 and give the lowest and the highest value (default: 1)
  --out DIR     folder of the results (default: claims)

Exit status: 0, or 1 where a claim fails that should hold.
"""


@dataclass(frozen=True)
class _Request:
    claims: tuple[str, ...]
    seeds: int
    out: Path


def verify(argv: list[str]) -> int:
    """Run the command."""
    arguments = read_command_line(argv, "verify")
    if "help" in arguments.flags:
        sys.stdout.write(_USAGE)
        return 0
    request = _parse(arguments.values, arguments.flags)
    _make_folder(request.out)
    with _one_thread():
        found = _measure_all(request)
    _write(found, request.out)
    width = get_terminal_size((140, 24)).columns
    sys.stdout.write(format_table(found, width) + f"\nThe page with all figures: {request.out / PAGE}\n")
    failed = [claim.name for claim in found if claim.verdict == "fails"]
    if failed:
        sys.stdout.write(f"These fail where they should hold: {', '.join(failed)}\n")
    return FAILURE if failed else 0


def _measure_all(request: _Request) -> list[Claim]:
    console, found = error_console(), []
    for number, name in enumerate(request.claims, start=1):
        with console.status(f"measuring {name}, {number} of {len(request.claims)}"):
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


def _parse(values: dict[str, str], flags: set[str]) -> _Request:
    unknown = [name for name in values if name not in ("claim", "seeds", "out")] + sorted(flags)
    if unknown:
        raise CommandError(f"targetprop verify has no option --{unknown[0]}; its options are --claim, --seeds, --out")
    claim, seeds = values.get("claim"), values.get("seeds", "1")
    if claim is not None and claim not in CLAIMS:
        raise CommandError(f"unknown claim {claim!r}; {suggest(claim, CLAIMS)}")
    claims, out = tuple(CLAIMS) if claim is None else (claim,), Path(values.get("out", "claims")).expanduser()
    return _Request(claims, read_count("seeds", seeds), out)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--out {out} cannot be made ({error}); give another folder") from error


def _write(claims: list[Claim], out: Path) -> None:
    figures = [FIGURES[claim.name](claim) for claim in claims]
    try:
        for claim, figure in zip(claims, figures, strict=True):
            figure.savefig(out / f"{claim.name}.png", dpi=150)
        write_atomic(out / RECORDS, encode_json([{"verdict": claim.verdict} | asdict(claim) for claim in claims]))
        write_atomic(out / PAGE, render_page(claims, figures).encode())
    except OSError as error:
        raise CommandError(f"the results cannot be written into {out} ({error})", FAILURE) from error
