"""Memory after thousands of steps of every method: bytes of tensors that are alive, and of the whole process.

    python benchmarks/flat_memory.py                 # 5,000 steps of every method, a few minutes
    python benchmarks/flat_memory.py --steps 500 --methods dtp

Tensors are counted by the storages that Python can reach; the process by its resident pages. Both are read after a
warm-up of a tenth of the steps and at the end, each time after a garbage collection. The collector is on meanwhile, as
it is in any run: ``torch.func``, by which exact decoders differentiate, leaves cycles of small objects that only it can
free. Exit status 1 if a tensor more is alive, or the process grew by more than ``--slack``.
"""

import argparse
import gc
import json
import os
import resource
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import torch
from torch import nn

import targetprop as tp
from step_time import dense


def alive() -> int:
    """Count the bytes of all storages that Python objects hold."""
    tensors = (o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter))
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def resident() -> int:
    """Count the bytes of the process that are in memory."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def growth(method: str, steps: int, widths: list[int], batch: int) -> dict[str, int]:
    """Take the steps of one method; bytes at the end, less those after a tenth of them."""
    torch.manual_seed(0)
    net = dense(widths)
    x, y = torch.randn(batch, widths[0]), torch.randint(0, widths[-1], (batch,))
    engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x, method=method, on_divergence="skip")
    optimizer, skipped = torch.optim.Adam(net.parameters(), lr=1e-4), 0

    def take(count: int) -> int:
        missed = 0
        for step in range(count):
            optimizer.zero_grad()
            report = engine.backward(x, y, measure=step % 50 == 0)
            missed += report.skipped is not None
            if report.skipped is None:
                optimizer.step()
        optimizer.zero_grad()
        return missed

    skipped = take(max(1, steps // 10))
    gc.collect()
    before = alive(), resident()
    skipped += take(steps - max(1, steps // 10))
    gc.collect()
    after = alive(), resident()
    return {"tensors": after[0] - before[0], "process": after[1] - before[1], "skipped": skipped}


def main() -> int:
    """Measure, print and write the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(tp.METHODS), default=list(tp.METHODS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=5000, help="steps of every method")
    parser.add_argument("--widths", nargs="+", type=int, default=[16, 32, 32, 4], help="of a dense network")
    parser.add_argument("--batch", type=int, default=32, help="batch size")
    parser.add_argument("--slack", type=int, default=4 << 20, help="bytes that the process may grow by")
    parser.add_argument("--out", type=Path, help="write the result as JSON here")
    arguments = parser.parse_args()
    rows, good = {}, True
    for method in arguments.methods:
        row = rows[method] = growth(method, arguments.steps, arguments.widths, arguments.batch)
        flat = row["tensors"] <= 0 and row["process"] <= arguments.slack
        good = good and flat
        print(
            f"{method:<16} tensors {row['tensors']:+8d} B   process {row['process'] / 1024:+8.0f} KiB"
            f"   over {arguments.steps} steps{'' if flat else '   GROWS'}",
            flush=True,
        )
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"settings": vars(arguments), "rows": rows}, default=str, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
