"""Imports the library and trains a tiny model where none of the extras' packages can be imported."""

import sys

import torch
from torch import nn

OPTIONAL = {
    "IPython", "PIL", "jsonargparse", "lightning", "matplotlib", "optuna", "pytorch_lightning", "pytorch_optimizer",
    "rich", "safetensors", "sklearn", "scipy", "tensorboard", "torchmetrics", "transformers", "wandb", "yaml",
}  # fmt: skip


def main() -> None:
    """Train by a method of each kind."""
    before = set(sys.modules)
    assert not OPTIONAL & before
    sys.modules.update(dict.fromkeys(OPTIONAL))  # an import of these fails from here on
    import targetprop as tp

    mine = {name.split(".")[1] for name in set(sys.modules) - before if name.startswith("targetprop.")}
    assert "engine" in mine
    assert not mine & {"lightning", "diagnostics", "testing", "experiments", "bench", "report", "runs", "claims"}
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    y = (x[:, 0] > x[:, 1]).long()
    for method in ("l-drl", "dtp", "iterated", "least-squares"):
        net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
        engine = tp.TargetPropagation(net, nn.CrossEntropyLoss(), example_input=x[:2], method=method)
        optimizer, losses = torch.optim.Adam(net.parameters(), lr=0.02), []
        for _ in range(60):
            optimizer.zero_grad()
            losses.append(float(engine.backward(x, y).loss))
            optimizer.step()
        assert losses[-1] < 0.5 * losses[0], (method, losses[0], losses[-1])
    print(tp.check(net, x, method="dtp"))


if __name__ == "__main__":
    main()
