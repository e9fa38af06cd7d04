"""Shared by the step-time benchmarks: sides that take steps in turn in one process, and their ratio to PyTorch."""

import time

import numpy as np
import torch
from torch import nn

import targetprop as tp


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


def measure(
    sides: dict[str, Side], x: torch.Tensor, y: torch.Tensor, rounds: int, warmup: int = 10
) -> dict[str, list[float]]:
    """Time ``rounds`` steps of every side in turn, in an order that rotates; returns seconds by method."""
    for side in sides.values():
        for _ in range(warmup):
            side.step(x, y)
    names, seconds = list(sides), {name: [] for name in sides}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            sides[name].step(x, y)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: dict[str, list[float]]) -> dict[str, dict[str, float | list[float]]]:
    """Print and return each method's ratio to ``loss.backward()``, taken round by round."""
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
