"""Time of a step with compiled stages, and with deterministic algorithms, against the same step without.

    python benchmarks/compiled.py                                   # --compile
    python benchmarks/compiled.py --what deterministic

Both sides take steps in turn in one process, on the same batch of a dense tanh network; ratios are taken round by
round.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import numpy as np
import torch
from torch import nn

import targetprop as tp
from step_time import dense
from targetprop.compiled import Stages


def compare(method: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Time both sides of one method."""
    x, y = torch.randn(arguments.batch, arguments.widths[0]), torch.randint(0, arguments.widths[-1], (arguments.batch,))
    stages = Stages(arguments.backend, print)
    sides = []
    for compiled in (False, arguments.what == "compile"):
        net = dense(arguments.widths)
        engine = tp.TargetPropagation(
            net, nn.CrossEntropyLoss(), example_input=x, method=method, seed=0, compile=stages if compiled else False
        )
        sides.append((engine, torch.optim.Adam(net.parameters())))

    def step(side: int) -> float:
        torch.use_deterministic_algorithms(side == 1 and arguments.what == "deterministic")
        engine, optimizer = sides[side]
        start = time.perf_counter()
        optimizer.zero_grad()
        engine.backward(x, y)
        optimizer.step()
        return time.perf_counter() - start

    begin = time.perf_counter()
    step(1)
    first = time.perf_counter() - begin
    for _ in range(10):
        step(0), step(1)
    seconds = np.array([[step(i % 2), step(1 - i % 2)][:: 1 - 2 * (i % 2)] for i in range(arguments.rounds)])
    low, middle, high = np.percentile(seconds[:, 1] / seconds[:, 0], [25, 50, 75])
    plain, other = np.median(seconds, axis=0)
    print(
        f"{method:<12} {plain * 1e3:6.2f} ms, {arguments.what} {other * 1e3:6.2f} ms   {middle:.3f} x"
        f" (quartiles {low:.3f}-{high:.3f}); first step {first:.1f} s{'; ' + stages.failure if stages.failure else ''}"
    )
    return {"ratio_median": middle, "ratio_quartiles": [low, high], "first_step_seconds": first}


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=["compile", "deterministic"], default="compile", help="what to time")
    parser.add_argument("--methods", nargs="+", default=["dtp", "l-drl", "iterated"], help="methods to measure")
    parser.add_argument("--widths", nargs="+", type=int, default=[784, 256, 256, 256, 10], help="of the network")
    parser.add_argument("--batch", type=int, default=128, help="batch size")
    parser.add_argument("--rounds", type=int, default=200, help="steps of either side")
    parser.add_argument("--backend", default="inductor", help="backend of torch.compile")
    parser.add_argument("--out", type=Path, help="write the result as JSON here")
    arguments = parser.parse_args()
    rows = {method: compare(method, arguments) for method in arguments.methods}
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"settings": vars(arguments), "rows": rows}, default=str, indent=1) + "\n")


if __name__ == "__main__":
    main()
