"""MNIST test accuracy of several methods in the same loop: 784-256-256-256-10, tanh, Adam, batch 128.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/mnist.py --root DIR --out benchmarks/results/mnist.json

DIR is where MNIST's idx files lie (DIR/MNIST/raw). Every run starts from the same weights and sees the same order of
data as the other methods with its seed. The accuracy is that of the last epoch, not the best one.
"""

import argparse
import json
import os
import platform
import statistics
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from targetprop.experiments.build import build_state
from targetprop.experiments.config import LoopSettings, RunConfig
from targetprop.experiments.data.mnist import Mnist
from targetprop.experiments.loop import run_epoch
from targetprop.experiments.networks import Dense
from targetprop.experiments.optimizers import Adam
from targetprop.methods import method


class Silent:
    """Hears of every step and says nothing."""

    def on_step(self, record: dict | None) -> None:
        """Ignore the step."""


def main() -> None:
    """Read the command line, train, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder that holds MNIST/raw")
    parser.add_argument("--methods", nargs="+", default=["backprop", "dtp", "l-drl", "krylov"], help="methods to train")
    parser.add_argument("--widths", nargs="+", type=int, default=[256, 256, 256], help="hidden widths")
    parser.add_argument("--epochs", type=int, default=5, help="epochs")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, …")
    parser.add_argument("--out", type=Path, help="write the result as JSON here")
    arguments = parser.parse_args()
    data = Mnist(root=arguments.root).load()
    rows: dict[str, dict] = {}
    for name in arguments.methods:
        accuracies, seconds = [], []
        for seed in range(arguments.seeds):
            config = RunConfig(
                method=method(name),
                data=Mnist(root=arguments.root),
                network=Dense(widths=arguments.widths),
                optimizer=Adam(),
                loop=LoopSettings(epochs=arguments.epochs, batch_size=128, seed=seed),
            )
            state = build_state(config, data)
            for _ in range(arguments.epochs):
                record = run_epoch(state, data, 128, 10**9, Silent())
            accuracies.append(100 * record["test_accuracy"])
            seconds.append(state.seconds / state.step)
            print(f"{name:<12} seed {seed}: {accuracies[-1]:.2f} %  ({seconds[-1] * 1e3:.1f} ms a step)", flush=True)
        rows[name] = {"test_accuracy": accuracies, "mean": statistics.mean(accuracies), "seconds_per_step": seconds}
    print(f"\n{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, row in rows.items():
        spread = f"{min(row['test_accuracy']):.2f}-{max(row['test_accuracy']):.2f}"
        print(f"{name:<12} {row['mean']:.2f} %  ({spread} over {arguments.seeds} seeds, {arguments.epochs} epochs)")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        settings = {key: str(value) for key, value in vars(arguments).items() if key not in ("root", "out")}
        arguments.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
