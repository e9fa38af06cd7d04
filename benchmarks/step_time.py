"""Time of one training step against back-propagation's, alternated in one process.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/step_time.py --methods dtp l-drl iterated

Both sides run the same network (784-5×256-10, tanh, batch 128 unless told otherwise) and step it with
``torch.optim.Adam`` at its defaults. Each round times one step of every side, in an order that rotates; the ratio is
taken round by round, and its median and quartiles are printed and written as JSON.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import numpy as np
import torch
from torch import nn

import targetprop as tp


def dense(widths: list[int]) -> nn.Sequential:
    """Build a tanh network."""
    modules: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        modules += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*modules[:-1])


class Side:
    """One network with its engine and optimiser."""

    def __init__(self, method: str, widths: list[int], x: torch.Tensor) -> None:
        """Build from one seed; ``method="plain"`` is ``loss.backward()`` without the library."""
        torch.manual_seed(0)
        self.net, self.loss = dense(widths), nn.CrossEntropyLoss()
        self.optimizer = torch.optim.Adam(self.net.parameters())
        self.engine = (
            None if method == "plain" else tp.TargetPropagation(self.net, self.loss, method=method, example_input=x)
        )

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Take one training step."""
        self.optimizer.zero_grad()
        if self.engine is None:
            self.loss(self.net(x), y).backward()
        else:
            self.engine.backward(x, y)
        self.optimizer.step()


def measure(methods: list[str], widths: list[int], batch: int, rounds: int) -> dict[str, list[float]]:
    """Time ``rounds`` steps of every side in turn; returns seconds by method."""
    x, y = torch.randn(batch, widths[0]), torch.randint(0, widths[-1], (batch,))
    sides = {name: Side(name, widths, x) for name in ["plain", *methods]}
    for side in sides.values():
        for _ in range(10):
            side.step(x, y)
    names, seconds = list(sides), {name: [] for name in sides}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            sides[name].step(x, y)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Read the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--methods", nargs="+", default=["backprop", "dtp", "l-drl", "iterated"], help="methods to time"
    )
    parser.add_argument("--widths", nargs="+", type=int, default=[784, *[256] * 5, 10], help="layer widths")
    parser.add_argument("--batch", type=int, default=128, help="batch size")
    parser.add_argument("--rounds", type=int, default=300, help="steps of every side")
    parser.add_argument("--out", type=Path, help="write the result as JSON here")
    arguments = parser.parse_args()
    seconds = measure(arguments.methods, arguments.widths, arguments.batch, arguments.rounds)
    plain = np.array(seconds["plain"])
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    rows = {}
    print(f"{'-'.join(map(str, arguments.widths))}, batch {arguments.batch}, {arguments.rounds} rounds, {machine}")
    print(f"{'plain':<12} {np.median(plain) * 1e3:8.2f} ms")
    for name in arguments.methods:
        times = np.array(seconds[name])
        quartiles = np.percentile(times / plain, [25, 50, 75])
        rows[name] = {"ratio_median": quartiles[1], "ratio_quartiles": [quartiles[0], quartiles[2]]}
        rows[name]["ratio_of_medians"] = float(np.median(times) / np.median(plain))
        spread = f"quartiles {quartiles[0]:.2f}-{quartiles[2]:.2f}"
        print(
            f"{name:<12} {np.median(times) * 1e3:8.2f} ms   {quartiles[1]:5.2f} x"
            f"   ({spread}; ratio of medians {rows[name]['ratio_of_medians']:.2f})"
        )
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(
            json.dumps({"settings": vars(arguments), "machine": machine, "rows": rows}, default=str)
        )


if __name__ == "__main__":
    main()
