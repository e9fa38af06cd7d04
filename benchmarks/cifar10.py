"""CIFAR-10: training loss, test accuracy and step time of several methods in the same loop; crops and flips, Adam.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/cifar10.py --root DIR --out benchmarks/results/cifar10.json
    python benchmarks/cifar10.py --tiny     # random images, some seconds: only shows that everything runs

DIR is where CIFAR-10's binary version lies. Every run starts from the same weights and sees the same order of data as
the other methods with its seed. The accuracy is that of the last epoch, not the best one. A run that diverges counts as
null, and the result is written after every run.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from targetprop.experiments.build import build_state, find_device
from targetprop.experiments.config import LoopSettings, RunConfig
from targetprop.experiments.data import Cifar10, Dataset
from targetprop.experiments.loop import run_epoch
from targetprop.experiments.networks import NETWORKS
from targetprop.experiments.optimizers import Adam
from targetprop.methods import method

TINY: dict[str, Any] = {"epochs": 1, "seeds": 1, "limit": 64, "batch_size": 32, "device": "cpu"}


class Silent:
    """Hears of every step and says nothing."""

    def on_step(self, record: dict | None) -> None:
        """Ignore the step."""


def train(config: RunConfig, data: Dataset) -> dict[str, Any]:
    """Train one network; return test accuracy in per cent, null if it diverged, losses by epoch and time per step."""
    state, losses, accuracy = build_state(config, data), [], None
    try:
        for _ in range(config.loop.epochs):
            losses.append(run_epoch(state, data, config.loop.batch_size, 10**9, Silent())["train_loss"])
        accuracy = 100 * state.last["test_accuracy"]
    except FloatingPointError:
        pass
    return {"test_accuracy": accuracy, "train_loss": losses, "seconds_per_step": state.seconds / state.step}


def write_random_cifar10(folder: str) -> str:
    """Write files of CIFAR-10's format, full of random images."""
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        records = torch.randint(256, (32, 3073), dtype=torch.uint8)
        records[:, 0] %= 10
        records.numpy().tofile(Path(folder) / f"{name}.bin")
    return folder


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder that holds cifar-10-batches-bin")
    parser.add_argument("--methods", nargs="+", default=["backprop", "l-drl", "krylov"], help="methods to train")
    parser.add_argument("--network", choices=list(NETWORKS), default="lenet", help="network, as it is by default")
    parser.add_argument("--epochs", type=int, default=5, help="epochs")
    parser.add_argument("--seeds", type=int, default=2, help="seeds 0, 1, …")
    parser.add_argument("--batch_size", type=int, default=128, help="samples per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam")
    parser.add_argument("--limit", type=int, help="training samples to use; all if left out")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to train")
    parser.add_argument("--note", default="", help="what to know of this copy of the data; kept in the result")
    parser.add_argument("--out", type=Path, help="write the result as JSON here")
    parser.add_argument("--tiny", action="store_true", help="a few steps on random images")
    arguments = parser.parse_args()
    if arguments.root is None and not arguments.tiny:
        parser.error("--root DIR is needed, the folder that holds cifar-10-batches-bin; or --tiny")
    if arguments.tiny:
        vars(arguments).update(TINY)
    return arguments


def measure(arguments: argparse.Namespace, root: str) -> None:
    """Train every method with every seed; print and write the table."""
    source = Cifar10(root=root, limit=arguments.limit)
    device = find_device(arguments.device)
    data = source.load().to(device)
    settings = {key: str(value) for key, value in vars(arguments).items() if key not in ("root", "out", "note")}
    place = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    header = {"settings": settings, "note": arguments.note, "where": f"{platform.machine()}, {place}"}
    header["torch"] = torch.__version__
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in range(arguments.seeds):
        for name in arguments.methods:
            loop = LoopSettings(epochs=arguments.epochs, batch_size=arguments.batch_size, seed=seed)
            network = NETWORKS[arguments.network]()
            run = train(RunConfig(method(name), source, network, Adam(lr=arguments.lr), loop), data)
            rows.setdefault(name, []).append({"seed": seed, **run})
            print(f"{name:<12} seed {seed}: {describe([run])}", flush=True)
            if arguments.out:
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps({**header, "rows": rows}, indent=1) + "\n")
    print(f"\n{header['where']}, torch {torch.__version__}, {arguments.network}, {arguments.epochs} epochs")
    for name, runs in rows.items():
        print(f"{name:<12} {describe(runs)}")


def describe(runs: list[dict[str, Any]]) -> str:
    """Put the mean accuracy, its range, the last epoch's mean training loss and the time of a step in words."""
    found = [run["test_accuracy"] for run in runs if run["test_accuracy"] is not None]
    time = f"{1e3 * statistics.median(run['seconds_per_step'] for run in runs):.1f} ms a step"
    if len(found) < len(runs):
        return f"{len(runs) - len(found)} of {len(runs)} diverged, {time}"
    spread = f" ({min(found):.2f}-{max(found):.2f} over {len(found)} seeds)" if len(found) > 1 else ""
    loss = statistics.mean(run["train_loss"][-1] for run in runs)
    return f"{statistics.mean(found):.2f} %{spread}, training loss {loss:.4f}, {time}"


def main() -> None:
    """Measure on the files given, or on random ones."""
    arguments = parse()
    if not arguments.tiny:
        measure(arguments, arguments.root)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, write_random_cifar10(folder))


if __name__ == "__main__":
    main()
