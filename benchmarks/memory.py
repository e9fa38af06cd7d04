"""Bytes alive at a step's peak, beyond parameters and optimiser states, against back-propagation's.

    python benchmarks/memory.py                      # a dense tanh network
    python benchmarks/memory.py --network lenet      # images 3×32×32

Every tensor storage that an operation creates is counted from its birth to its death, by a dispatch mode that sees all
operations; what exists before the step (parameters, optimiser states, the batch) is not counted. Gradients are: both
sides start with ``zero_grad()``. Growth is the difference of that count over 1,000 steps.
"""

import argparse
import gc
import json
import os
import weakref
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from step_time import dense
from targetprop.experiments.networks import NETWORKS
from timing import Side


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages created inside it, while they live."""

    def __init__(self) -> None:
        """Start at nothing."""
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), known)
        return out

    def _count(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        key = storage._cdata
        if key in known or key in self._seen:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)

        def died(_: object) -> None:
            self.now -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, died)


def start(method: str, arguments: argparse.Namespace) -> tuple[Side, torch.Tensor, torch.Tensor]:
    """Make a network with its engine, and a batch."""
    images, widths = arguments.network != "dense", arguments.widths
    x = torch.randn(arguments.batch, *((3, 32, 32) if images else widths[:1]))
    y = torch.randint(0, 10 if images else widths[-1], (arguments.batch,))
    net = NETWORKS[arguments.network]().build((3, 32, 32), 10) if images else dense(widths)
    return Side(method, net, x), x, y


def step_peak(method: str, arguments: argparse.Namespace) -> int:
    """Run a few steps, then measure one; returns its peak in bytes."""
    side, x, y = start(method, arguments)
    for _ in range(3):
        side.step(x, y)
    side.optimizer.zero_grad()
    gc.collect()
    with LiveBytes() as live:
        if side.engine is None:
            side.loss(side.net(x), y).backward()
        else:
            side.engine.backward(x, y)
    return live.peak


def growth(method: str, arguments: argparse.Namespace) -> int:
    """Count how many bytes more are alive ``steps`` steps later."""
    side, x, y = start(method, arguments)
    with LiveBytes() as live:
        for _ in range(10):
            side.step(x, y)
        before = live.now
        for _ in range(arguments.steps):
            side.step(x, y)
        return live.now - before


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["dtp", "l-drl", "krylov"], help="methods to measure")
    parser.add_argument("--network", choices=list(NETWORKS), default="dense", help="network, as it is by default")
    parser.add_argument("--widths", nargs="+", type=int, default=[784, *[256] * 5, 10], help="of a dense network")
    parser.add_argument("--batch", type=int, default=128, help="batch size")
    parser.add_argument("--steps", type=int, default=1000, help="steps over which memory must stay flat")
    parser.add_argument("--out", type=Path, help="write the result as JSON here")
    arguments = parser.parse_args()
    plain = step_peak("plain", arguments)
    print(f"plain        peak {plain / 1e6:6.2f} MB")
    rows = {"plain": {"peak_bytes": plain}}
    for method in arguments.methods:
        peak, more = step_peak(method, arguments), growth(method, arguments)
        rows[method] = {"peak_bytes": peak, "ratio": peak / plain, "growth_bytes": more}
        print(
            f"{method:<12} peak {peak / 1e6:6.2f} MB  {peak / plain:4.2f} x   growth over {arguments.steps}: {more} B"
        )
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"settings": vars(arguments), "rows": rows}, default=str, indent=1) + "\n")


if __name__ == "__main__":
    main()
