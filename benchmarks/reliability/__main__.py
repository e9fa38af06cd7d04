"""Runs the parts of the reliability measurements and writes their figures; ends with status 1 where a part fails.

Run it in the folder ``benchmarks``: ``python -m reliability --out results/reliability.json``; ``make reliability``
does.
"""

import argparse
import json
import os
import platform
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from time import perf_counter
from typing import Any

import torch

PACKAGE = "reliability"


def main() -> int:
    """Run the parts asked for; returns the exit status."""
    arguments = parse()
    torch.set_num_threads(1)
    parts: dict[str, dict[str, Any]] = {}
    for name, measure in find_parts().items():
        if arguments.only and name not in arguments.only:
            continue
        print(f"{name} …", file=sys.stderr, flush=True)
        start = perf_counter()
        parts[name] = measure(arguments.fast)
        parts[name]["seconds"] = round(perf_counter() - start, 1)
        print(json.dumps({name: parts[name]}), flush=True)
    failed = [f"{name}: {failure}" for name, part in parts.items() for failure in part["failures"]]
    if arguments.out:
        write(arguments.out, parts, arguments.fast)
    print("\n".join(failed) or "no failures", file=sys.stderr)
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="a small share of every part, as in the tests")
    parser.add_argument("--only", nargs="+", help="names of parts")
    parser.add_argument("--out", type=Path, help="write the figures as JSON here; parts not run keep theirs")
    return parser.parse_args()


def find_parts() -> dict[str, Any]:
    """Import the modules of this folder; returns their functions ``measure`` by the module's name."""
    names = sorted(module.name for module in iter_modules([str(Path(__file__).parent)]) if module.name != "__main__")
    modules = {name: import_module(f"{PACKAGE}.{name}") for name in names}
    return {name: module.measure for name, module in modules.items() if hasattr(module, "measure")}


def write(path: Path, parts: dict[str, Any], fast: bool) -> None:
    """Put the figures of the parts that were run into the file."""
    before = json.loads(path.read_text())["parts"] if path.exists() else {}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    place = {"machine": machine, "torch": torch.__version__, "fast": fast}
    path.write_text(json.dumps({**place, "parts": dict(sorted({**before, **parts}.items()))}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
