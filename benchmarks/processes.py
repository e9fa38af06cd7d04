"""Speed-up of several processes: rows of the batch (process_group) or layers (placement) on each, against one process.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/processes.py --out benchmarks/results/processes.json

Every process has one thread, or one GPU if each can have one. In each round the first process takes a step alone on the
whole batch while the others wait, then all take it together by rows and by layers, in an order that rotates; printed
are the medians and quartiles of the ratios, round by round. Ratios below 1 are a speed-up.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import targetprop as tp

METHODS = {
    "dtp": tp.method("dtp"),
    "krylov": tp.method("krylov"),
    "joint": tp.method(
        "learned-inverse",
        inversion=tp.InputSpace(steps=12),
        propagation="joint",
        decoder=tp.DifferenceReconstruction(w=1.0, damping=3.0, relative=True, activation="transpose", lr=5e-3),
    ),
}


def dense(widths: list[int]) -> nn.Sequential:
    """Build a tanh network."""
    modules: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        modules += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*modules[:-1])


def work(rank: int, size: int, arguments: argparse.Namespace, folder: str) -> None:
    """Take steps in turn, and let rank 0 write the times."""
    torch.set_num_threads(1)
    gpus = torch.cuda.device_count() >= size
    device = torch.device("cuda", rank) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    backend = "nccl" if gpus else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=size)
    group = dist.group.WORLD
    assert group is not None
    torch.manual_seed(0)
    x = torch.randn(arguments.batch, arguments.widths[0], device=device)
    y = torch.randint(0, arguments.widths[-1], (arguments.batch,), device=device)
    found = {}
    for name in arguments.methods:
        sides = {}
        for side, parts in (
            ("alone", {}),
            ("rows", {"process_group": group}),
            ("layers", {"placement": tp.Placement(group)}),
        ):
            net = dense(arguments.widths).to(device)
            engine = tp.TargetPropagation(
                net, nn.CrossEntropyLoss(), example_input=x, method=METHODS[name], seed=0, **parts
            )
            mine = (x[rank::size], y[rank::size]) if side == "rows" else (x, y)
            sides[side] = engine, torch.optim.Adam(net.parameters()), mine
        found[name] = measure(sides, rank, arguments.rounds, gpus)
    if rank == 0:
        Path(folder, "times.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def measure(sides: dict, rank: int, rounds: int, gpus: bool, warmup: int = 5) -> dict[str, list[float]]:
    """Time every side in every round, from a common start; returns seconds by side."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for i in range(rounds + warmup):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            engine, optimizer, batch = sides[name]
            dist.barrier()
            start = time.perf_counter()
            if rank == 0 or name != "alone":
                optimizer.zero_grad()
                engine.backward(*batch)
                optimizer.step()
                if gpus:
                    torch.cuda.synchronize()
            if i >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Read the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="methods to time")
    parser.add_argument("--processes", type=int, default=2, help="processes")
    parser.add_argument("--widths", nargs="+", type=int, default=[784, *[512] * 8, 10], help="layer widths")
    parser.add_argument("--batch", type=int, default=512, help="batch size")
    parser.add_argument("--rounds", type=int, default=60, help="steps of every side")
    parser.add_argument("--out", type=Path, help="write the result as JSON here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (arguments.processes, arguments, folder), nprocs=arguments.processes)
        times = json.loads(Path(folder, "times.json").read_text())
    widths = "-".join(map(str, arguments.widths))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    print(f"{widths}, batch {arguments.batch}, {arguments.processes} processes, {machine}")
    rows = {}
    for name, sides in times.items():
        alone = np.array(sides["alone"])
        for side in ("rows", "layers"):
            low, middle, high = np.percentile(np.array(sides[side]) / alone, [25, 50, 75])
            rows[f"{name}, {side}"] = {"ratio_median": middle, "ratio_quartiles": [low, high]}
            print(f"{name:<10} {side:<7} {middle:5.2f} x one process  (quartiles {low:.2f}-{high:.2f})")
        print(f"{name:<10} alone   {np.median(alone) * 1e3:8.1f} ms")
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"settings": vars(arguments), "machine": machine, "rows": rows}, default=str)
        )


if __name__ == "__main__":
    main()
