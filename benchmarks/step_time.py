"""Time of one training step against back-propagation's, alternated in one process.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/step_time.py --methods dtp l-drl krylov

Both sides run the same network (784-5×256-10, tanh, batch 128 unless told otherwise) and step it with
``torch.optim.Adam`` at its defaults. Each round times one step of every side, in an order that rotates; the ratio is
taken round by round, and its median and quartiles are printed and written as JSON.
"""

import argparse
import json
import os
import platform
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import torch
from torch import nn

from timing import Side, measure, summary


def dense(widths: list[int]) -> nn.Sequential:
    """Build a tanh network."""
    modules: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        modules += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*modules[:-1])


def main() -> None:
    """Read the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["backprop", "dtp", "l-drl", "krylov"], help="methods to time")
    parser.add_argument("--widths", nargs="+", type=int, default=[784, *[256] * 5, 10], help="layer widths")
    parser.add_argument("--batch", type=int, default=128, help="batch size")
    parser.add_argument("--rounds", type=int, default=300, help="steps of every side")
    parser.add_argument("--out", type=Path, help="write the result as JSON here")
    arguments = parser.parse_args()
    x, y = torch.randn(arguments.batch, arguments.widths[0]), torch.randint(0, arguments.widths[-1], (arguments.batch,))
    sides = {}
    for name in ["plain", *arguments.methods]:
        torch.manual_seed(0)
        sides[name] = Side(name, dense(arguments.widths), x)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{'-'.join(map(str, arguments.widths))}, batch {arguments.batch}, {arguments.rounds} rounds, {machine}")
    rows = summary(measure(sides, x, y, arguments.rounds))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(
            json.dumps({"settings": vars(arguments), "machine": machine, "rows": rows}, default=str)
        )


if __name__ == "__main__":
    main()
