r"""The decoder of what has no other: an affine map per position, from the piece's output to its input.

    ``g(y) = P y + V y + c``

``P`` is the identity where input and output have one shape and zero elsewhere, and ``V`` starts at zero beside the
identity. Where input and output have other positions (time, height and width), a position of the input sees the nearest
one of the output; a vector is seen by all positions, and a vector sees the mean of all.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_SPATIAL = ("conv", "pool", "batch_norm", "group_norm", "interpolate", "instance_norm")


class AffineDecoder(nn.Module):
    """An affine map per position, on top of the identity where shapes agree.

    Args:
        x: an example of the piece's input, shape ``(n, …)``.
        y: an example of its output.
        names: the functions that the piece calls, by which it is told where the features are.
    """

    def __init__(self, x: Tensor, y: Tensor, names: list[str]) -> None:
        """Draw ``V`` as ``nn.Linear`` does, or start at zero beside the identity."""
        super().__init__()
        spatial = len(x) == len(y) and any(part in name for name in names for part in _SPATIAL)
        self.first = spatial and max(x.dim(), y.dim()) > 2  # whether features come before positions
        self.ratio = len(x) // max(1, len(y)), len(y) // max(1, len(x))  # rows of one for a row of the other
        self.residual = x.shape == y.shape
        inputs, outputs = (_last(t, self.first).shape[-1] for t in (x, y))
        self.map = nn.Linear(outputs, inputs).to(y)
        if self.residual:
            nn.init.zeros_(self.map.weight)
            nn.init.zeros_(self.map.bias)

    def bind(self, x: Tensor) -> "BoundAffine":
        """Bind to one pass, for the shape of the piece's input in it."""
        sizes = tuple(_last(x, self.first).shape[1:-1])
        return BoundAffine(self, (self.ratio[0], *sizes) if self.ratio[0] > 1 else sizes, x.dim() == 1)


@dataclass(frozen=True, eq=False)
class BoundAffine:
    """``g`` for one pass.

    Attributes:
        decoder: the decoder.
        sizes: how many positions the piece's input has, by axis.
        plain: whether the input has no axis of features.
    """

    decoder: AffineDecoder
    sizes: tuple[int, ...]
    plain: bool

    affine = True
    moves = False

    def __call__(self, y: Tensor) -> Tensor:
        """Decode."""
        return self._apply(y, self.decoder.map.bias)

    def linear(self, change: Tensor) -> Tensor:
        """Apply ``P + V``."""
        return self._apply(change, None)

    def rows(self, y: Tensor) -> Tensor:
        """Lay out what each position of the input sees, shape ``(n, positions, features)``."""
        below = self.decoder.ratio[1]
        return _resize(_last(y.unflatten(0, (-1, below)) if below > 1 else y, self.decoder.first), self.sizes)

    def _apply(self, y: Tensor, bias: Tensor | None) -> Tensor:
        decoder, seen = self.decoder, self.rows(y)
        x = functional.linear(seen, decoder.map.weight, bias)
        x = x + seen if decoder.residual else x
        x = x.unflatten(1, self.sizes) if self.sizes else x.squeeze(1)
        x = x.movedim(-1, 1) if decoder.first else x
        x = x.flatten(0, 1) if decoder.ratio[0] > 1 else x
        return x.squeeze(-1) if self.plain else x


def _last(t: Tensor, first: bool) -> Tensor:
    """Put the features last."""
    if t.dim() == 1:
        return t.unsqueeze(-1)
    return t.movedim(1, -1) if first else t


def _resize(y: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Let every position of the input see one of the output, shape ``(n, positions, features)``."""
    here = y.shape[1:-1]
    if len(here) != len(sizes):
        y = y.flatten(1, -2) if len(here) else y.unsqueeze(1)
        here, sizes = y.shape[1:-1], (math.prod(sizes),)
        if sizes[0] == 1:
            return y.mean(1, keepdim=True)
    for d, (size, wanted) in enumerate(zip(here, sizes, strict=True), start=1):
        if size != wanted:
            y = y.index_select(d, torch.arange(wanted, device=y.device) * size // wanted)
    return y.flatten(1, -2) if len(sizes) else y.unsqueeze(1)
