"""``targetprop methods``: the table of published methods, from the library's own registry."""

import sys
from dataclasses import dataclass
from shutil import get_terminal_size
from textwrap import fill

import targetprop as tp
from targetprop.experiments.options import read_request


@dataclass(frozen=True)
class Request:
    """Lists the methods by name.

    Attributes:
        verbose: add the parts that each of them is made of.
    """

    verbose: bool = False


def methods(argv: list[str]) -> int:
    """Print the methods."""
    (request,) = read_request(argv, "targetprop methods [--verbose]", Request)
    for name, make in tp.METHODS.items():
        summary = (make.__doc__ or "").strip().partition("\n")[0]
        parts = str(tp.method(name)).partition("\n")[2] + "\n\n" if request.verbose else ""
        columns = max(40, get_terminal_size().columns)
        row = fill(f"{name:<15} {summary}", columns, subsequent_indent=" " * 16, break_on_hyphens=False)
        sys.stdout.write(f"{row}\n{parts}")
    return 0
