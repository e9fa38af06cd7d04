r"""`kronecker` against Adam, SOAP and Muon on models that use maps several times, on embedded data.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/several_uses.py \
        --out benchmarks/results/several_uses.json
    python benchmarks/several_uses.py --steps 3 --seeds 1      # only shows that everything runs
    python benchmarks/several_uses.py --models LSTM GRUs       # some of the models

The rivals have three rates each, `kronecker` its defaults; 150 steps of 128 samples, 5 % warm-up and linear decay.
Prints the training loss after 10, 25, 50 and 100 % of the steps, a mean over a twentieth of them.
"""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from targetprop.bench.competitors import COMPETITORS
from targetprop.bench.losses import SoftmaxCrossEntropy
from targetprop.bench.problems import Characters, Narrow, Problem, Task
from targetprop.bench.run import train
from targetprop.layers import forked_random_states

RATES = {"adam": (0.01, 0.03, 0.1), "soap": (0.01, 0.03, 0.1), "muon": (0.01, 0.03, 0.1)}


class ResidualSteps(nn.Module):
    """One convolution, applied four times on top of the identity, with a batch norm for each time."""

    def __init__(self) -> None:
        """Make the maps."""
        super().__init__()
        self.first, self.step = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norms, self.last = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(4)), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(n, 1, 8, 8)`` to logits."""
        h = torch.relu(self.first(x))
        for norm in self.norms:
            h = h + torch.relu(norm(self.step(h)))
        return self.last(adaptive_avg_pool2d(h, 2).flatten(1))


class MinimalGatedUnit(nn.Module):
    """A recurrent model of text, with a label for each character."""

    def __init__(self, width: int = 48) -> None:
        """Make the maps."""
        super().__init__()
        self.table, self.read = nn.Embedding(128, 24), nn.Linear(24, 2 * width)
        self.state, self.last = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 128)

    def forward(self, text: Tensor) -> Tensor:
        """Map ``(n, T)`` characters to logits ``(n, T, 128)``."""
        h, found = torch.zeros(len(text), self.last.in_features), []
        for x in self.table(text).unbind(1):
            (gate, new), (gated, old) = self.read(x).chunk(2, -1), self.state(h).chunk(2, -1)
            h = torch.lerp(h, torch.tanh(new + old), torch.sigmoid(gate + gated))
            found.append(h)
        return self.last(torch.stack(found, 1))


class Lstm(nn.Module):
    """PyTorch's own LSTM on text, with a label for each character."""

    def __init__(self, width: int = 48) -> None:
        """Make the layers."""
        super().__init__()
        self.table, self.layer = nn.Embedding(128, 24), nn.LSTM(24, width, batch_first=True)
        self.last = nn.Linear(width, 128)

    def forward(self, text: Tensor) -> Tensor:
        """Map ``(n, T)`` characters to logits ``(n, T, 128)``."""
        return self.last(self.layer(self.table(text))[0])


class Grus(nn.Module):
    """Two of PyTorch's GRUs, both ways, over the rows of an image."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.layers, self.last = nn.GRU(8, 24, 2, batch_first=True, bidirectional=True), nn.Linear(48, 10)

    def forward(self, rows: Tensor) -> Tensor:
        """Map images ``(n, 8, 8)`` to logits."""
        return self.last(self.layers(rows)[0].mean(1))


class AttentionOverRows(nn.Module):
    """A perceptron of each row of an image, one call for each, and a weighted mean over the rows."""

    def __init__(self) -> None:
        """Make the maps."""
        super().__init__()
        self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 32)
        self.weigh, self.last = nn.Linear(32, 1), nn.Linear(32, 10)

    def forward(self, rows: Tensor) -> Tensor:
        """Map images ``(n, 8, 8)`` to logits."""
        each = [torch.relu(self.second(torch.relu(self.first(row)))) for row in rows.unbind(1)]
        h = torch.stack(each, 1) * torch.linspace(1, 2.4, len(each)).unsqueeze(1)  # where a row is, matters
        return self.last((torch.softmax(self.weigh(h), 1) * h).sum(1))


@dataclass(frozen=True)
class Reuse(Problem):
    """One of the models above with its data."""

    batch: int = 128
    steps: int = 150
    model: str = "residual steps"
    models: ClassVar[dict[str, Callable[[], nn.Module]]] = {
        "residual steps": ResidualSteps, "gated unit": MinimalGatedUnit, "attention over rows": AttentionOverRows,
        "LSTM": Lstm, "GRUs": Grus,
    }  # fmt: skip
    name: ClassVar[str] = "reuse"

    def network(self, seed: int) -> nn.Module:
        """Build the model; see `Problem.network`."""
        with forked_random_states(seed):
            return self.models[self.model]()

    def load(self) -> Task:
        """Take the embedded digits, or Python's own library; see `Problem.load`."""
        if self.model in ("gated unit", "LSTM"):
            return Characters(length=16, size=60_000).load()
        task, shape = Narrow().load(), (1, 8, 8) if self.model == "residual steps" else (8, 8)
        x, test_x = task.x.unflatten(1, shape), task.test_x.unflatten(1, shape)
        return Task(x, task.y, test_x, task.test_y, SoftmaxCrossEntropy(), {})


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="steps of the schedule")
    parser.add_argument("--seeds", type=int, default=2, help="how many runs of each")
    parser.add_argument("--models", nargs="+", default=list(Reuse.models), choices=Reuse.models, help="which models")
    parser.add_argument("--out", type=Path, help="write all figures here")
    arguments, found = parser.parse_args(), []
    torch.set_num_threads(1)
    rivals = [(name, replace(COMPETITORS[name], lr=rate)) for name, rates in RATES.items() for rate in rates]
    for model in arguments.models:
        problem = Reuse(steps=arguments.steps, model=model)
        task = problem.load()
        for name, competitor in (("kronecker", COMPETITORS["kronecker"]), *rivals):
            for seed in range(arguments.seeds):
                history = train(problem, task, competitor, seed, arguments.steps)
                losses = [round(history.at(share), 4) for share in (0.1, 0.25, 0.5, 1.0)]
                test = round(history.measures.get("test loss", float("nan")), 4)
                row = {"model": model, "competitor": name, "rate": competitor.lr, "seed": seed}
                found.append(row | {"at 10, 25, 50, 100 %": losses, "test loss": test})
                print(*row.values(), losses, "test", test, flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
