r"""One run of `lenet` on CIFAR-10 with the last training images held out: what settings are chosen by.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/held_out.py --root DIR --steps 500 --seed 1 \
        --weight_decay 0.003 --update shrinkage=12
    python benchmarks/held_out.py --competitor adam --rate 0.004 --root DIR --steps 1000 --seed 1 --weight_decay 0.5
    python benchmarks/held_out.py --tiny     # random images, some seconds: only shows that everything runs

A step takes the share ``rate · weight_decay`` of the weights away. The test set is not read. Prints the training loss
after 10, 25, 50 and 100 % of the steps, and loss and accuracy on the images trained on and on those held out.
"""

import argparse
import os
import tempfile
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from torch import Tensor, nn
from torch.optim import SGD

import targetprop as tp
from cifar10 import write_random_cifar10
from targetprop.bench.competitors import COMPETITORS
from targetprop.bench.competitors.competitor import Competitor, GradientStepper, Stepper
from targetprop.bench.losses import SampledLoss
from targetprop.bench.problems import PROBLEMS
from targetprop.bench.run import train


@dataclass(frozen=True)
class Kronecker(Competitor):
    """The method `kronecker` with any setting of its update."""

    lr: float = 1.0
    update: tp.Kronecker = field(default_factory=tp.Kronecker)
    exact: bool = False  # exact transposes in place of mirrors
    space: ClassVar = {}

    def start(self, network: nn.Module, loss: SampledLoss, example: Tensor, seed: int) -> Stepper:
        """Build the engine; see `Competitor.start`."""
        method = tp.method("kronecker", update=self.update)
        if self.exact:
            method = replace(method, decoder=tp.Exact(w=0.0, damping=1.0))
        engine = tp.TargetPropagation(network, loss, example_input=example, method=method, seed=seed)
        return GradientStepper(lambda x, y: engine.backward(x, y).loss, [SGD(network.parameters(), self.lr)])


def setting(text: str) -> tuple[str, Any]:
    """Read ``name=number``."""
    name, _, value = text.partition("=")
    return name, int(value) if value.isdigit() else float(value)


def run(arguments: argparse.Namespace) -> None:
    """Train once and print what was found."""
    problem = PROBLEMS["lenet"](
        steps=arguments.steps, root=arguments.root, weight_decay=arguments.weight_decay, batch=arguments.batch
    )
    task, kept = problem.load(), -arguments.held_out
    task = replace(task, x=task.x[:kept], y=task.y[:kept], test_x=task.x[kept:], test_y=task.y[kept:])
    if arguments.competitor == "kronecker":
        competitor: Competitor = Kronecker(update=tp.Kronecker(**dict(arguments.update)), exact=arguments.exact)
    else:
        competitor = COMPETITORS[arguments.competitor]
    if arguments.rate is not None:
        competitor = replace(competitor, lr=arguments.rate)

    def progress(step: int, steps: int, loss: float) -> None:
        if step % 100 == 0:
            print(f"step {step} of {steps}: loss {loss:.3f}", flush=True)

    history = train(problem, task, competitor, arguments.seed, arguments.steps, progress)
    print("training loss at 10, 25, 50, 100 %:", *(f"{history.at(share):.3f}" for share in (0.1, 0.25, 0.5, 1.0)))
    for name, value in history.measures.items():
        print(f"{name.replace('test', 'held-out')}: {value:.4f}")


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder that holds CIFAR-10")
    parser.add_argument("--competitor", default="kronecker", choices=sorted(COMPETITORS), help="who trains")
    parser.add_argument("--rate", type=float, help="learning rate; left out: the competitor's own")
    parser.add_argument("--update", type=setting, nargs="*", default=[], metavar="NAME=X", help="settings of kronecker")
    parser.add_argument("--exact", action="store_true", help="kronecker with exact transposes in place of mirrors")
    parser.add_argument("--weight_decay", type=float, default=0.0, help="share taken away by a step at rate 1")
    parser.add_argument("--steps", type=int, default=500, help="steps of the schedule")
    parser.add_argument("--batch", type=int, default=128, help="samples per step")
    parser.add_argument("--held_out", type=int, default=5000, help="how many images are not trained on")
    parser.add_argument("--seed", type=int, default=1, help="of weights and batches")
    parser.add_argument("--tiny", action="store_true", help="random images and few steps")
    arguments = parser.parse_args()
    if not arguments.tiny and arguments.root is None:
        parser.error("give the folder that holds CIFAR-10 as --root DIR, or take --tiny")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.tiny:
            write_random_cifar10(folder)
            arguments.root, arguments.steps, arguments.held_out, arguments.batch = folder, 4, 8, 8
        run(arguments)


if __name__ == "__main__":
    main()
