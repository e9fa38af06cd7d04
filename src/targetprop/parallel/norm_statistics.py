"""Norms whose statistics a batch shares: with the rows of a batch on several ranks, none of them knows these."""

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]


def check_norms(modules: Iterable[nn.Module], *, synchronised: bool = False) -> None:
    """Refuse batch normalisation in training mode, where several ranks train one model."""
    for module in (part for top in modules for part in top.modules()):
        fine = synchronised and isinstance(module, nn.SyncBatchNorm)
        if isinstance(module, _BatchNorm) and module.training and not fine:
            remedy = "nn.SyncBatchNorm.convert_sync_batchnorm(model)" if synchronised else "nn.GroupNorm"
            raise ValueError(
                f"{type(module).__name__} would normalise by each rank's own rows instead of the batch's; use"
                f" {remedy}, or call its eval() to use its running statistics"
            )
