"""``targetprop methods``: the table of published methods, from the library's own registry."""

import sys

import targetprop as tp
from targetprop.experiments.errors import CommandError

_USAGE = """usage: targetprop methods [--verbose]

Lists the methods by name; --verbose adds the parts each of them is made of.
"""


def methods(argv: list[str]) -> int:
    """Print the methods."""
    unknown = [a for a in argv if a not in ("-v", "--verbose", "-h", "--help")]
    if unknown:
        raise CommandError(f"targetprop methods does not know {unknown[0]!r}; its one option is --verbose")
    if "-h" in argv or "--help" in argv:
        sys.stdout.write(_USAGE)
        return 0
    for name, make in tp.METHODS.items():
        summary = (make.__doc__ or "").strip().split("\n")[0]
        sys.stdout.write(f"{name:<15} {summary}\n")
        if argv:
            parts = str(tp.method(name)).split("\n")[1:]
            sys.stdout.write("\n".join([*parts, "", ""]))
    return 0
