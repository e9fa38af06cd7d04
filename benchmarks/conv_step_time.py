"""Time of one training step of a convolutional network against back-propagation's, alternated in one process.

    OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=2 python benchmarks/conv_step_time.py --methods backprop l-drl

Both sides run the same network (convolutions of 32 and 64 channels, 5×5, each with ReLU and 2×2 max pooling, then
512 units and 10 outputs; 3×32×32 inputs, batch 128) and step it with ``torch.optim.Adam`` at its defaults. Each round
times one step of every side, in an order that rotates; the ratio is taken round by round, and its median and quartiles
are printed and written as JSON. ``--tiny`` checks the script in a second.
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


def lenet(channels: tuple[int, int], size: int, hidden: int) -> nn.Sequential:
    """Build the network for ``size × size`` images."""
    return nn.Sequential(
        nn.Conv2d(3, channels[0], 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels[0], channels[1], 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(channels[1] * (size // 4) ** 2, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )


class Side:
    """One network with its engine and optimiser."""

    def __init__(self, method: str, net: nn.Sequential, x: torch.Tensor) -> None:
        """Start an optimiser; ``method="plain"`` is ``loss.backward()`` without the library."""
        self.net, self.loss = net, nn.CrossEntropyLoss()
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


def measure(sides: dict[str, Side], x: torch.Tensor, y: torch.Tensor, rounds: int) -> dict[str, list[float]]:
    """Time ``rounds`` steps of every side in turn; returns seconds by method."""
    for side in sides.values():
        for _ in range(3):
            side.step(x, y)
    names, seconds = list(sides), {name: [] for name in sides}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            sides[name].step(x, y)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: dict[str, list[float]]) -> dict[str, dict[str, float | list[float]]]:
    """Print and return each method's ratio to ``loss.backward()``."""
    plain, rows = np.array(seconds["plain"]), {}
    print(f"{'plain':<12} {np.median(plain) * 1e3:8.2f} ms")
    for name in (name for name in seconds if name != "plain"):
        times = np.array(seconds[name])
        low, middle, high = np.percentile(times / plain, [25, 50, 75])
        of_medians = float(np.median(times) / np.median(plain))
        rows[name] = {"ratio_median": middle, "ratio_quartiles": [low, high], "ratio_of_medians": of_medians}
        print(
            f"{name:<12} {np.median(times) * 1e3:8.2f} ms   {middle:5.2f} x"
            f"   (quartiles {low:.2f}-{high:.2f}; ratio of medians {of_medians:.2f})"
        )
    return rows


def main() -> None:
    """Read the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["backprop", "l-drl"], help="methods to time")
    parser.add_argument("--batch", type=int, default=128, help="batch size")
    parser.add_argument("--rounds", type=int, default=60, help="steps of every side")
    parser.add_argument("--tiny", action="store_true", help="a tiny network, batch 4, 2 rounds")
    parser.add_argument("--out", type=Path, help="write the result as JSON here")
    arguments = parser.parse_args()
    channels, size, hidden = ((2, 3), 8, 16) if arguments.tiny else ((32, 64), 32, 512)
    if arguments.tiny:
        arguments.batch, arguments.rounds = 4, 2
    torch.manual_seed(0)
    x, y = torch.randn(arguments.batch, 3, size, size), torch.randint(0, 10, (arguments.batch,))
    sides = {}
    for name in ["plain", *arguments.methods]:
        torch.manual_seed(0)
        sides[name] = Side(name, lenet(channels, size, hidden), x)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"conv {channels}, {size}x{size}, batch {arguments.batch}, {arguments.rounds} rounds, {machine}")
    rows = summary(measure(sides, x, y, arguments.rounds))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        settings = {**vars(arguments), "channels": channels, "size": size, "hidden": hidden}
        arguments.out.write_text(json.dumps({"settings": settings, "machine": machine, "rows": rows}, default=str))


if __name__ == "__main__":
    main()
