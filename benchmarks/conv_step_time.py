"""Time of one training step of a convolutional network against back-propagation's, alternated in one process.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/conv_step_time.py --methods backprop l-drl

Both sides run the same network (convolutions of 32 and 64 channels, 5×5, each with ReLU and 2×2 max pooling, then
512 units and 10 outputs; 3×32×32 inputs, batch 128) and step it with ``torch.optim.Adam`` at its defaults. Each round
times one step of every side, in an order that rotates; the ratio is taken round by round, and its median and quartiles
are printed and written as JSON. ``--tiny`` checks the script in a second.
"""

import argparse
import json
import os
import platform
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import torch

from targetprop.experiments.networks import NETWORKS
from timing import Side, measure, summary


def main() -> None:
    """Read the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["backprop", "l-drl"], help="methods to time")
    parser.add_argument("--batch", type=int, default=128, help="batch size")
    parser.add_argument("--rounds", type=int, default=60, help="steps of every side")
    parser.add_argument("--tiny", action="store_true", help="a tiny network, batch 4, 2 rounds")
    parser.add_argument("--out", type=Path, help="write the result as JSON here")
    arguments = parser.parse_args()
    channels, size, hidden = ([2, 3], 8, 16) if arguments.tiny else ([32, 64], 32, 512)
    if arguments.tiny:
        arguments.batch, arguments.rounds = 4, 2
    torch.manual_seed(0)
    x, y = torch.randn(arguments.batch, 3, size, size), torch.randint(0, 10, (arguments.batch,))
    network, sides = NETWORKS["lenet"](channels=channels, hidden=hidden), {}
    for name in ["plain", *arguments.methods]:
        torch.manual_seed(0)
        sides[name] = Side(name, network.build((3, size, size), 10), x)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"conv {channels}, {size}x{size}, batch {arguments.batch}, {arguments.rounds} rounds, {machine}")
    rows = summary(measure(sides, x, y, arguments.rounds, warmup=3))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        settings = {**vars(arguments), "channels": channels, "size": size, "hidden": hidden}
        arguments.out.write_text(json.dumps({"settings": settings, "machine": machine, "rows": rows}, default=str))


if __name__ == "__main__":
    main()
