"""Small vision transformers (Dosovitskiy 2020, arXiv:2010.11929), with the mean over patches as summary.

>>> import torch
>>> ViT(dim=8, depth=1, heads=2, patch=4).build((3, 16, 12), classes=5)(torch.zeros(2, 3, 16, 12)).shape
torch.Size([2, 5])
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

import targetprop as tp
from targetprop.experiments.networks.network import (
    ACTIVATIONS,
    Network,
    check_activation,
    check_layers,
    check_sizes,
    refuse_images,
)


class Tokens(nn.Module):
    """An image's pixels as a sequence: ``(n, dim, height, width)`` to ``(n, height · width, dim)``."""

    def forward(self, h: Tensor) -> Tensor:
        """Reorder; nothing is computed."""
        return h.flatten(2).transpose(1, 2)


class Positions(nn.Module):
    """Adds a learned vector per position of the sequence: ``h + p``."""

    def __init__(self, length: int, dim: int) -> None:
        """Draw the vectors, normal with standard deviation 0.02."""
        super().__init__()
        self.vectors = nn.Parameter(0.02 * torch.randn(length, dim))

    def forward(self, h: Tensor) -> Tensor:
        """Add them to tokens of shape ``(n, length, dim)``."""
        return h + self.vectors


class AttentionCore(nn.Module):
    """What attention computes between its linear maps: ``softmax(Q Kᵀ / √d) V`` in each head, d the size of a head.

    Written out, since the fused kernels have no second derivative, which exact decoders take.
    """

    def __init__(self, heads: int) -> None:
        """Keep the number."""
        super().__init__()
        self.heads = heads

    def forward(self, qkv: Tensor) -> Tensor:
        """Let every token look at all others."""
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)


class MeanPool(nn.Module):
    """The mean over the sequence: ``(n, length, dim)`` to ``(n, dim)``."""

    def forward(self, h: Tensor) -> Tensor:
        """Average."""
        return h.mean(1)


@dataclass(frozen=True)
class ViT(Network):
    """Patches as tokens, pre-norm attention and MLP blocks, each residual, then the mean over tokens.

    Attributes:
        dim: size of a token.
        depth: number of pairs of an attention block and an MLP block.
        heads: attention heads, a divisor of dim.
        patch: height and width of a patch, a divisor of the image's.
        expansion: hidden units of an MLP block per unit of dim.
        activation: of the MLP blocks; tanh, relu, leaky-relu, elu, gelu, selu, sigmoid, softplus or identity.
    """

    dim: int = 64
    depth: int = 4
    heads: int = 4
    patch: int = 4
    expansion: int = 2
    activation: str = "gelu"
    name: ClassVar[str] = "vit"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_sizes(dim=self.dim, depth=self.depth, heads=self.heads, patch=self.patch, expansion=self.expansion)
        check_layers(2 * self.depth)
        if self.dim % self.heads:
            raise ValueError(f"network.heads must divide network.dim; got {self.heads} and {self.dim}")
        check_activation(self.activation)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Stack the blocks; see `Network.build`."""
        channels, height, width = shape
        if height % self.patch or width % self.patch:
            need = f"of a height and width that --network.patch {self.patch} divides"
            refuse_images(self, shape, need, "give another --network.patch")
        length = (height // self.patch) * (width // self.patch)
        layers: list[nn.Module] = [
            nn.Conv2d(channels, self.dim, self.patch, stride=self.patch),
            Tokens(),
            Positions(length, self.dim),
        ]
        for _ in range(self.depth):
            layers += [self._attention(), self._mlp()]
        return nn.Sequential(*layers, MeanPool(), nn.LayerNorm(self.dim), nn.Linear(self.dim, classes))

    def _attention(self) -> tp.Residual:
        return tp.Residual(
            nn.LayerNorm(self.dim),
            nn.Linear(self.dim, 3 * self.dim),
            AttentionCore(self.heads),
            nn.Linear(self.dim, self.dim),
        )

    def _mlp(self) -> tp.Residual:
        wide = self.expansion * self.dim
        return tp.Residual(
            nn.LayerNorm(self.dim),
            nn.Linear(self.dim, wide),
            ACTIVATIONS[self.activation](),
            nn.Linear(wide, self.dim),
        )
