"""Train on scikit-learn's digits under a Lightning Trainer, with early stopping and the best checkpoint kept.

python examples/train_lightning.py
"""

import tempfile
import warnings

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from targetprop.lightning import TargetPropagationModule

# The data lie in memory, and workers would not load them faster.
warnings.filterwarnings("ignore", message=".*does not have many workers")

seed_everything(0)
digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
train = DataLoader(TensorDataset(x[:1500], y[:1500]), batch_size=64, shuffle=True)
held_out = DataLoader(TensorDataset(x[1500:], y[1500:]), batch_size=297)

net = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10))
module = TargetPropagationModule(net, nn.CrossEntropyLoss(), optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))

with tempfile.TemporaryDirectory() as folder:
    best = ModelCheckpoint(dirpath=folder, monitor="val_loss")
    trainer = Trainer(
        max_epochs=20,
        accelerator="cpu",
        callbacks=[best, EarlyStopping("val_loss", patience=3)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, train, held_out)
    (metrics,) = trainer.validate(module, held_out, ckpt_path=best.best_model_path, verbose=False)

print(f"after {trainer.current_epoch} epochs: {metrics}")
assert metrics["val_accuracy"] > 0.9
