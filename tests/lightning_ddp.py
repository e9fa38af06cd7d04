"""Train under Lightning in one process or several; run as a script, which Lightning starts once per process.

python tests/lightning_ddp.py METHOD PROCESSES FOLDER
"""

import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, Trainer
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


def train(method: str, processes: int, folder: Path) -> dict[str, torch.Tensor]:
    """Train, and store what each process ends with."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    module = TargetPropagationModule(net, nn.CrossEntropyLoss(), method=method, optimizer=sgd, seed=0)
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        log_every_n_steps=3,
    )  # fmt: skip
    trainer.fit(module, datamodule=Data())
    assert module.engine is not None
    metrics = {name: value.double() for name, value in trainer.callback_metrics.items()}
    decoders = module.engine.bank.state_dict(prefix="decoders.") if hasattr(module.engine, "bank") else {}
    found = {**net.state_dict(), **decoders, **metrics}
    torch.save(found, folder / f"{trainer.global_rank}.pt")
    return found


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
