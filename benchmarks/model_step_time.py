"""Time, peak memory and recording of models as they are written, against back-propagation's.

    python benchmarks/model_step_time.py                          # OMP_NUM_THREADS=1 for one thread
    python benchmarks/model_step_time.py --only gpt mlp --methods l-drl --rounds 5

Steps alternate in one process; ratios are medians over rounds, of processor time, which other jobs disturb less than
the clock. Memory is counted as in `memory.py`. Recording is the time of the first step, the making of the engine
included, in steps of back-propagation.
"""

import argparse
import json
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from statistics import median, quantiles
from time import process_time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import torch
from torch import Tensor, nn
from torch.nn import functional

import targetprop as tp
from char_gpt import Gpt
from char_gpt import loss as next_character
from memory import LiveBytes


class BasicBlock(nn.Module):
    """The block of ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Make it."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2, self.relu = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        kept = x if self.shortcut is None else self.shortcut(x)
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        out += kept
        return self.relu(out)


def resnet18() -> nn.Module:
    """Make ResNet-18 for images of 32×32."""
    widths = ((64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2),
              (512, 512, 1))  # fmt: skip
    stem = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)
    return nn.Sequential(
        *stem, *(BasicBlock(*w) for w in widths), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)
    )


def dense(*widths: int) -> nn.Module:
    """Make a tanh network."""
    maps = [nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)]
    return nn.Sequential(*(part for m in maps for part in (m, nn.Tanh())))[:-1]


def lenet() -> nn.Module:
    """Make a convolutional network, as `conv_step_time.py` has it."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4096, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


def images(n: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Draw images and classes."""
    return torch.randn(n, *shape), torch.randint(0, 10, (n,))


def characters() -> tuple[Tensor, Tensor]:
    """Draw characters and what follows."""
    return torch.randint(0, 65, (16, 128)), torch.randint(0, 65, (16, 128))


Task = tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]], Callable[[Any, Any], Tensor], int]
TASKS: dict[str, Task] = {
    "784-5x256-10, batch 128": (
        lambda: dense(784, *[256] * 5, 10), lambda: images(128, 784), functional.cross_entropy, 30,
    ),
    "784-3x1024-10, batch 128": (
        lambda: dense(784, *[1024] * 3, 10), lambda: images(128, 784), functional.cross_entropy, 8,
    ),
    "lenet, batch 64": (lenet, lambda: images(64, 3, 32, 32), functional.cross_entropy, 4),
    "gpt 4x256, batch 16x128": (lambda: Gpt(65, 128, 256, 4, 4, 0.0), characters, next_character, 2),
    "resnet18, batch 32": (resnet18, lambda: images(32, 3, 32, 32), functional.cross_entropy, 1),
}  # fmt: skip


def measure(task: Task, methods: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Take steps of all methods in turn."""
    make, data, loss, steps = task
    torch.manual_seed(0)
    model, (x, y) = make(), data()
    sides: dict[str, Callable[[], None]] = {}
    first: dict[str, float] = {}
    for method in ("plain", *methods):
        begun = process_time()
        sides[method] = side(deepcopy(model), method, loss, x, y)
        sides[method]()
        first[method] = process_time() - begun
        sides[method]()
    times: dict[str, list[float]] = {method: [] for method in sides}
    for _ in range(rounds):
        for method, step in sides.items():
            begun = process_time()
            for _ in range(steps):
                step()
            times[method].append((process_time() - begun) / steps)
    peaks = {method: peak(step) for method, step in sides.items()}
    plain = median(times["plain"])
    return {
        method: {
            "seconds": median(taken),
            "ratio": median(a / b for a, b in zip(taken, times["plain"], strict=True)),
            "quartiles": quantiles([a / b for a, b in zip(taken, times["plain"], strict=True)]),
            "memory": peaks[method] / peaks["plain"],
            "recording": first[method] / plain,
        }
        for method, taken in times.items()
    }


def side(model: nn.Module, method: str, loss: Callable, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Make a training step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    engine = None
    if method != "plain":
        engine = tp.TargetPropagation(model, loss, example_input=x[:2], method=method, seed=0)

    def step() -> None:
        optimizer.zero_grad()
        if engine is None:
            loss(model(x), y).backward()
        else:
            engine.backward(x, y)
        optimizer.step()

    return step


def peak(step: Callable[[], None]) -> int:
    """Count the bytes alive at a step's peak."""
    with LiveBytes() as counted:
        step()
        counted.peak = counted.now
        step()
    return counted.peak


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["l-drl", "krylov", "least-squares"])
    parser.add_argument("--only", nargs="+", default=[""], help="tasks whose names begin so")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    found = {}
    for name, task in TASKS.items():
        if not any(name.startswith(wanted) for wanted in a.only):
            continue
        found[name] = measure(task, a.methods, a.rounds)
        for method, row in found[name].items():
            low, _, high = row["quartiles"]
            print(
                f"{name:26} {method:14} {1e3 * row['seconds']:8.1f} ms  {row['ratio']:.2f} ({low:.2f}-{high:.2f}) x"
                f"  memory {row['memory']:.2f} x  first step {row['recording']:.1f}",
                flush=True,
            )
    if a.out:
        record = {"threads": torch.get_num_threads(), "torch": torch.__version__, "tasks": found}
        a.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
