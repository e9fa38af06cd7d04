"""Residual blocks as a module: ``s(h) + F(h)``.

>>> import torch
>>> from torch import nn
>>> block = Residual(nn.Linear(3, 3), nn.Tanh())
>>> h = torch.ones(2, 3)
>>> bool((block(h) == h + block.branch(h)).all())
True
"""

from torch import Tensor, nn


class Residual(nn.Module):
    """``h ↦ s(h) + F(h)``, with the identity as shortcut ``s`` unless another one is given.

    Args:
        *modules: the branch ``F``, applied in order.
        shortcut: the shortcut ``s``, for blocks that change the shape; the identity if None.
    """

    def __init__(self, *modules: nn.Module, shortcut: nn.Module | None = None) -> None:
        """Keep branch and shortcut."""
        super().__init__()
        self.branch = nn.Sequential(*modules)
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, h: Tensor) -> Tensor:
        """Add branch and shortcut.

        Args:
            h: input, shape ``(n, …)``.

        Returns:
            The sum.
        """
        return self.shortcut(h) + self.branch(h)
