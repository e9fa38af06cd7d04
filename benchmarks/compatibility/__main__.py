"""Measures every row and writes the page; ends with status 1 where one is at fault.

Run it in the folder ``benchmarks``: ``python -m compatibility --out ../docs/compatibility.md``; ``make compatibility``
does.
"""

import argparse
import sys
from pathlib import Path

import torch

from compatibility.judge import METHODS
from compatibility.page import all_rows, measure, write


def main() -> int:
    """Measure the rows asked for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="parts of the names of rows; what is found is printed")
    parser.add_argument("--out", type=Path, help="write the page here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found, faults = {}, []
    for title, rows in all_rows().items():
        rows = [c for c in rows if not arguments.only or any(part in c.name for part in arguments.only)]
        found[title] = []
        for number, case in enumerate(rows, 1):
            print(f"\r\033[K{title} {number}/{len(rows)}: {case.name}", end="", file=sys.stderr, flush=True)
            each = measure(case)
            found[title].append((case, each))
            faults += [f"{case.name}, {m}: {each[m].why}" for m in METHODS if each[m].word == "FAULT"]
            if arguments.only:
                print(case.name, *(f"    {m}: {each[m].word} {each[m].why}" for m in METHODS), sep="\n")
        print(f"\r\033[K{title}: {len(rows)} rows", file=sys.stderr)
    if arguments.out and not arguments.only:
        arguments.out.write_text(write(found), encoding="utf-8")
    print("\n".join(faults) or "no faults", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
