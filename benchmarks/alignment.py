r"""Alignment with back-propagation on CIFAR-10, and what it costs: feedback updates per batch against cosines.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/alignment.py --root DIR --out benchmarks/results/alignment.json \
        --figure docs/images/alignment.png
    python benchmarks/alignment.py --tiny     # random images, some seconds: only shows that everything runs

The network is `lenet` with its defaults, Adam at 1e-3, crops and flips, one epoch. Decoders see noise and their
layer's input and output, never the forward weights. A cosine is that of one layer's gradient of one batch, by target
propagation and by back-propagation with the same weights; the network is trained by the former. Reported are the means
over the last batches of the epoch. A step's time is divided by that of the back-propagation that it is compared with,
in the same process, batch by batch.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import targetprop as tp
from cifar10 import write_random_cifar10
from targetprop.experiments.data import Cifar10
from targetprop.experiments.networks import NETWORKS

# Decoder by what it learns from and how many updates it makes in a batch.
FAMILIES = {
    "mirrors, noise and activities": (lambda n: tp.WeightMirror(updates=n), (1, 2, 4)),
    "mirrors, noise alone": (lambda n: tp.WeightMirror(activity=0.0, updates=n), (1, 2, 4)),
    "L-DRL's loss, matched penalty": (
        lambda n: tp.DifferenceReconstruction(
            w=0.0, damping=1.0, activation="transpose", share=0.5, penalty="matched", start="zero", updates=n
        ),
        (1, 2, 4),
    ),
}


def compare(
    engine: tp.TargetPropagation, network: nn.Module, loss: nn.Module, x: Tensor, y: Tensor
) -> tuple[list[float], float]:
    """Compare ``.grad`` with back-propagation's, layer by layer, and leave it in place; return that one's time too."""
    layers = [list(layer.parameters()) for layer in engine.network.layers]
    found = [[p.grad for p in layer] for layer in layers]
    network.zero_grad()
    start = perf_counter()
    loss(network(x), y).backward()
    seconds, result = perf_counter() - start, []
    for layer, gradients in zip(layers, found, strict=True):
        a, b = (torch.cat([g.flatten() for g in part]) for part in (gradients, [p.grad for p in layer]))
        result.append(float(torch.cosine_similarity(a, b, dim=0)))
        for parameter, gradient in zip(layer, gradients, strict=True):
            parameter.grad = gradient
    return result, seconds


def run(decoder: Any, arguments: argparse.Namespace, data: Any) -> dict[str, Any]:
    """Train for some steps; look at the cosines now and then, and at every one of the last batches."""
    torch.manual_seed(arguments.seed)
    network, loss = NETWORKS["lenet"]().build(data.shape, data.classes), nn.CrossEntropyLoss()
    method = tp.method("l-drl", decoder=decoder)
    example = data.train_x[:2]
    engine = tp.TargetPropagation(network, loss, example_input=example, method=method, seed=arguments.seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    order = torch.Generator().manual_seed(arguments.seed)
    augment = data.augmentation.begin_epoch(order, torch.device("cpu"))
    batches = torch.randperm(len(data.train_x), generator=order).split(arguments.batch_size)
    looks: list[dict[str, Any]] = []
    for step in range(1, arguments.steps + 1):
        rows = batches[(step - 1) % len(batches)]
        x, y = augment(data.train_x[rows]), data.train_y[rows]
        optimizer.zero_grad()
        start = perf_counter()
        report = engine.backward(x, y)
        seconds = perf_counter() - start
        if step % arguments.every == 0 or step > arguments.steps - arguments.last:
            cosines, reference = compare(engine, network, loss, x, y)
            looks.append({"step": step, "loss": float(report.loss), "cosines": cosines, "time": seconds / reference})
        optimizer.step()
    last = [look["cosines"] for look in looks[-arguments.last :]]
    return {
        "decoder": str(decoder), "layers": engine.network.names, "looks": looks,
        "mean": [statistics.mean(column) for column in zip(*last, strict=True)],
        "least": [min(column) for column in zip(*last, strict=True)],
        "time": statistics.median(look["time"] for look in looks),
    }  # fmt: skip


def draw(result: dict[str, Any]) -> Figure:
    """Plot the worst layer's mean cosine and the time of a gradient against feedback updates per batch."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    cosine, time = figure.subplots(1, 2)
    for name, by_updates in result["families"].items():
        updates = [int(n) for n in by_updates]
        cosine.plot(updates, [min(run["mean"]) for run in by_updates.values()], "o-", label=name)
        time.plot(updates, [run["time"] for run in by_updates.values()], "o-", label=name)
    cosine.axhline(0.9, color="grey", linestyle="dotted")
    cosine.set(xlabel="feedback updates per batch", ylabel="cosine to back-propagation, worst layer")
    time.set(xlabel="feedback updates per batch", ylabel="time of a gradient / back-propagation's", ylim=(0, None))
    for axes in (cosine, time):
        axes.set_xticks([1, 2, 4])
        axes.spines[["top", "right"]].set_visible(False)
    cosine.legend(frameon=False)
    figure.suptitle(f"lenet, CIFAR-10, after {result['steps']} steps of {result['batch_size']}")
    return figure


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder that holds cifar-10-batches-bin")
    parser.add_argument("--steps", type=int, default=391, help="training steps; 391 are one epoch")
    parser.add_argument("--every", type=int, default=30, help="steps between two looks")
    parser.add_argument("--last", type=int, default=20, help="last steps, each looked at, that the means are over")
    parser.add_argument("--batch_size", type=int, default=128, help="samples per step")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    parser.add_argument("--note", default="", help="what to know of this copy of the data; kept in the result")
    parser.add_argument("--out", type=Path, help="write the result as JSON here")
    parser.add_argument("--figure", type=Path, help="write the figure here")
    parser.add_argument("--tiny", action="store_true", help="a few steps on random images")
    arguments = parser.parse_args()
    if arguments.root is None and not arguments.tiny:
        parser.error("--root DIR is needed, the folder that holds cifar-10-batches-bin; or --tiny")
    return arguments


def main() -> None:
    """Measure all families."""
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.tiny:
            arguments.root, arguments.steps, arguments.every, arguments.last = write_random_cifar10(folder), 4, 2, 2
        data = Cifar10(root=arguments.root).load()
    result: dict[str, Any] = {
        "steps": arguments.steps, "batch_size": arguments.batch_size, "seed": arguments.seed, "note": arguments.note,
        "torch": torch.__version__, "where": f"{platform.machine()}, {torch.get_num_threads()} threads", "families": {},
    }  # fmt: skip
    for name, (make, counts) in FAMILIES.items():
        for updates in counts:
            found = run(make(updates), arguments, data)
            result["families"].setdefault(name, {})[str(updates)] = found
            print(
                f"{name}, {updates}: cosines {[round(c, 3) for c in found['mean']]}, {found['time']:.2f} x", flush=True
            )
            if arguments.out is not None:
                arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.figure is not None:
        draw(result).savefig(arguments.figure, dpi=120)


if __name__ == "__main__":
    main()
