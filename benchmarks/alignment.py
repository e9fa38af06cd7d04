"""Alignment with back-propagation on CIFAR-10: cosine of every layer's update to the true gradient during training.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/alignment.py --root DIR --out benchmarks/results/alignment.json
    python benchmarks/alignment.py --tiny     # random images, some seconds: only shows that everything runs

The network is `lenet` with its defaults, Adam at 1e-3, crops and flips. Decoders see noise and their layer's input and
output, never the forward weights. A cosine is that of the gradient of one batch, by target propagation and by
back-propagation with the same weights; the network is trained by the former.
"""

import argparse
import json
import os
import platform
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn

import targetprop as tp
from cifar10 import write_random_cifar10
from targetprop.experiments.data import Cifar10
from targetprop.experiments.networks import NETWORKS

# Decoder settings on top of the method's own.
VARIANTS: dict[str, dict[str, Any]] = {
    "l-drl": {},
    "l-drl, matched penalty": {"penalty": "matched", "start": "zero", "lr": 1e-3},
}


def cosines(engine: tp.TargetPropagation, network: nn.Module, loss: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    """Compare the gradients in ``.grad`` with back-propagation's, layer by layer, and leave them in place."""
    assert engine.chain is not None
    layers = [list(layer.parameters()) for layer in engine.chain.layers]
    found = [[p.grad for p in layer] for layer in layers]
    network.zero_grad()
    loss(network(x), y).backward()
    result = []
    for layer, gradients in zip(layers, found, strict=True):
        a, b = (torch.cat([g.flatten() for g in part]) for part in (gradients, [p.grad for p in layer]))
        result.append(float(torch.cosine_similarity(a, b, dim=0)))
        for parameter, gradient in zip(layer, gradients, strict=True):
            parameter.grad = gradient
    return result


def run(settings: dict[str, Any], arguments: argparse.Namespace, data: Any) -> dict[str, Any]:
    """Train for some steps, and look at the cosines now and then."""
    torch.manual_seed(arguments.seed)
    network, loss = NETWORKS["lenet"]().build(data.shape, data.classes), nn.CrossEntropyLoss()
    method = tp.method("l-drl")
    method = replace(method, decoder=replace(method.decoder, **settings))
    example = data.train_x[:2]
    engine = tp.TargetPropagation(network, loss, example_input=example, method=method, seed=arguments.seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    order = torch.Generator().manual_seed(arguments.seed)
    augment = data.augmentation.begin_epoch(order, torch.device("cpu"))
    batches = torch.randperm(len(data.train_x), generator=order).split(arguments.batch_size)
    steps, rows, losses = [], [], []
    for step in range(1, arguments.steps + 1):
        rows_of_batch = batches[(step - 1) % len(batches)]
        x, y = augment(data.train_x[rows_of_batch]), data.train_y[rows_of_batch]
        optimizer.zero_grad()
        report = engine.backward(x, y)
        if step % arguments.every == 0 or step == arguments.steps:
            steps.append(step)
            rows.append(cosines(engine, network, loss, x, y))
            losses.append(float(report.loss))
            print(f"  step {step}: loss {losses[-1]:.3f}, cosines {[round(c, 3) for c in rows[-1]]}", flush=True)
        optimizer.step()
    assert engine.chain is not None
    return {
        "decoder": str(method.decoder),
        "layers": engine.chain.names,
        "steps": steps,
        "cosines": rows,
        "loss": losses,
    }


def main() -> None:
    """Measure all variants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder that holds cifar-10-batches-bin")
    parser.add_argument("--steps", type=int, default=391, help="training steps; 391 are one epoch")
    parser.add_argument("--every", type=int, default=30, help="steps between two looks")
    parser.add_argument("--batch_size", type=int, default=128, help="samples per step")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    parser.add_argument("--note", default="", help="what to know of this copy of the data; kept in the result")
    parser.add_argument("--out", type=Path, help="write the result as JSON here")
    parser.add_argument("--tiny", action="store_true", help="a few steps on random images")
    arguments = parser.parse_args()
    if arguments.root is None and not arguments.tiny:
        parser.error("--root DIR is needed, the folder that holds cifar-10-batches-bin; or --tiny")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.tiny:
            arguments.root, arguments.steps, arguments.every = write_random_cifar10(folder), 4, 2
        data = Cifar10(root=arguments.root).load()
    result: dict[str, Any] = {
        "steps": arguments.steps, "batch_size": arguments.batch_size, "seed": arguments.seed, "note": arguments.note,
        "torch": torch.__version__, "processor": platform.processor() or platform.machine(), "variants": {},
    }  # fmt: skip
    for name, settings in VARIANTS.items():
        print(name, flush=True)
        result["variants"][name] = run(settings, arguments, data)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
