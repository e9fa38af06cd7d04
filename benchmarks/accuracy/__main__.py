"""Training loss and test accuracy of methods on digits, MNIST, sixteen layers, and convolutions on CIFAR-10.

    cd benchmarks; OMP_WAIT_POLICY=PASSIVE python -m accuracy table --root DIR --out results/accuracy.json
    cd benchmarks; OMP_WAIT_POLICY=PASSIVE python -m accuracy tuned --root DIR --out results/tuned.json
    cd benchmarks; python -m accuracy table --tiny --root DIR                      # a look at it

`table` trains every method with the same optimiser, Adam at 1e-3; sixteen layers by back-propagation at three rates.
`tuned` gives `gauss-newton`, `least-squares` and Adam with back-propagation as many trials each, judged by a tenth of
the training set that is held out. The best of each by accuracy there is trained anew on all of it, with three seeds,
and the convolutional ones once more without crops and flips.

DIR holds MNIST/raw and cifar-10-batches-bin. A run is one process on one thread; with an accelerator, the
convolutional ones run there, several at a time, so their times say nothing. Runs that the result file holds already,
with the same settings, are kept and not made again.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import targetprop as tp
from accuracy.runs import Run, describe, header, read, train_all, write
from accuracy.tasks import TASKS

METHODS = ["backprop", "l-drl", "iterated", "krylov", "dtp", "learned-inverse", "autoencoder"]
FEW = ["backprop", "l-drl", "iterated", "krylov", "dtp"]  # where others take long and are known to fail
RATES = [3e-4, 1e-3, 3e-3]  # of back-propagation in the deep networks
SEEDS = {"lenet": 2}
GRID = {  # trials of settings, as many of each side
    "mnist": {
        "adam": [3e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3, 6e-3],
        "damping": [0.3, 1.0],
        "lr": [0.06, 0.1, 0.15, 0.25],
    },
    "lenet": {
        "adam": [5e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3],
        "damping": [1.0, 3.0],
        "lr": [0.25, 0.5, 0.8],
    },
}


def table(tasks: list[str], seeds: int) -> Iterator[Run]:
    """List the runs of one optimiser for all."""
    iterated = tp.method("iterated")
    delta_rule = replace(iterated, cut="pre-activation", update=tp.DeltaRule(pullback="transpose"))
    plain = replace(iterated, influence=tp.Influence())
    variants = {
        "iterated, delta rule": delta_rule,
        "iterated, delta rule, not normalised": replace(delta_rule, influence=tp.Influence()),
        "iterated, not normalised": plain,
        "iterated, not normalised, λ = 30": replace(plain, decoder=replace(plain.decoder, damping=30.0)),
    }
    for task in tasks:
        deep = task.startswith("deep")
        for seed in range(min(seeds, SEEDS.get(task, seeds))):
            for name in FEW[deep:] if deep or task == "lenet" else METHODS:
                yield Run(task, name, tp.method(name), seed=seed)
            for name, method in variants.items():
                if not (deep and "30" in name):
                    yield Run(task, name, method, seed=seed)
            for rate in RATES if deep else ():
                yield Run(task, f"backprop, rate {rate:g}", tp.method("backprop"), lr=rate, seed=seed)
            if task == "mnist":
                yield Run(task, "iterated, delta rule, SGD at 2", delta_rule, "sgd", 2.0, seed=seed)


def trials(tasks: list[str]) -> Iterator[Run]:
    """List the trials of settings."""
    for task in tasks:
        grid = GRID[task]
        for rate in grid["adam"]:
            yield Run(task, "Adam", tp.method("backprop"), lr=rate, decay=True, held_out=True)
        for name in ("gauss-newton", "least-squares"):
            for damping in grid["damping"]:
                update = tp.LeastSquares(damping=damping, shrinkage=0.1)
                for rate in grid["lr"]:
                    method = tp.method(name, update=update)
                    yield Run(task, name, method, "sgd", rate, 0.5, decay=True, held_out=True)


def main() -> None:
    """Read the command line, train, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["table", "tuned"], help="one optimiser for all, or each side tuned")
    parser.add_argument("--root", default="data", help="folder that holds MNIST/raw and cifar-10-batches-bin")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="tasks; all by default")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, …")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side")
    parser.add_argument("--tiny", action="store_true", help="one epoch on 256 samples, one seed")
    parser.add_argument("--out", type=Path, help="write the result as JSON here")
    a = parser.parse_args()
    limit, epochs, seeds = (256, 1, 1) if a.tiny else (None, None, a.seeds)
    content = read(a.out) if a.out is not None and a.out.exists() else {**header(), "trials": [], "runs": []}

    def keep(kind: str, runs: list[Run]) -> list[dict]:
        def note(result: dict) -> None:
            content[kind].append(result)
            if a.out is not None:  # what is there stays if the rest is cut off
                write(a.out, content)

        missing = [run for run in runs if run.result_in(content[kind]) is None]
        train_all(missing, a.processes, a.root, limit, epochs, note)
        found = [run.result_in(content[kind]) for run in runs]
        rest = [result for result in content[kind] if all(result is not one for one in found)]
        content[kind] = rest + found
        return found

    if a.what == "table":
        keep("runs", list(table(a.tasks or ["lenet", *(task for task in TASKS if "lenet" not in task)], seeds)))
    else:
        tried = list(trials(a.tasks or ["lenet", "mnist"]))
        accuracies = [result.get("accuracy", 0.0) for result in keep("trials", tried)]
        best: dict[tuple[str, str], tuple[float, Run]] = {}
        for run, accuracy in zip(tried, accuracies, strict=True):
            if accuracy > best.get((run.task, run.label), (-1.0, run))[0]:
                best[run.task, run.label] = accuracy, run
        finals = [run for _, run in best.values()]
        finals = [replace(run, task="lenet-plain") for run in finals if run.task == "lenet"] + finals
        keep("runs", [replace(run, seed=s, held_out=False) for run in finals for s in range(seeds)])
    if a.out is not None:
        write(a.out, content)
    for result in content["runs"]:
        print(describe(result))


if __name__ == "__main__":
    main()
