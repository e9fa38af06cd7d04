"""Residual blocks as a module that the library can see into: ``h + F(h)``.

The library repeats the modules inside one by one, so that dropout and batch normalisation may stand in a block, and
inverts the block by its shortcut (see `targetprop.decoders.residual`).

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
        correction: whether the block's inverse learns a correction for the branch; otherwise it is the shortcut's.
    """

    def __init_subclass__(cls) -> None:
        """Refuse another forward rule: what repeats and inverts the block relies on this one.

        Raises:
            TypeError: the derived class has a ``forward`` of its own.
        """
        if cls.forward is not Residual.forward:
            raise TypeError(f"{cls.__name__} changes what a Residual computes; derive it from nn.Module instead")

    def __init__(self, *modules: nn.Module, shortcut: nn.Module | None = None, correction: bool = False) -> None:
        """Keep branch and shortcut."""
        super().__init__()
        self.correction = correction
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
