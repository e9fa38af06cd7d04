"""Trains under Lightning in one process, and in two."""

import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from targetprop.lightning import TargetPropagationModule

warnings.filterwarnings("ignore", message=".*does not have many workers")


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


class Data(LightningDataModule):
    """Batches of 32 samples in order, which the processes share; Lightning's own sampler would shuffle them."""

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        x = torch.randn(192, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        data = TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())
        processes = self.trainer.world_size
        sampler = DistributedSampler(data, processes, self.trainer.global_rank, shuffle=False)
        return DataLoader(data, batch_size=32 // processes, sampler=sampler)

    val_dataloader = train_dataloader


class Keep(Callback):
    """Stores what each process ends with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: Trainer, pl_module: TargetPropagationModule) -> None:
        assert pl_module.engine is not None
        metrics = {name: value.double() for name, value in trainer.callback_metrics.items()}
        decoders = pl_module.engine.bank.state_dict(prefix="decoders.") if hasattr(pl_module.engine, "bank") else {}
        found = {**pl_module.model.state_dict(), **decoders, **metrics}
        torch.save(found, self.folder / f"{trainer.global_rank} of {trainer.world_size}.pt")


def train(method: str, processes: int, folder: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    module = TargetPropagationModule(net, nn.CrossEntropyLoss(), method=method, optimizer=sgd, seed=0)
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", devices=processes, strategy="ddp_fork" if processes > 1 else "auto",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, log_every_n_steps=3, callbacks=[Keep(folder)],
    )  # fmt: skip
    trainer.fit(module, datamodule=Data())


def train_all(folder: Path, methods: list[str]) -> None:
    """Train by each method in this process, then in two that are forked from it."""
    for name in methods:
        (folder / name).mkdir()
        for count in (1, 2):
            train(name, count, folder / name)
