r"""Weight inverses: for every map the damped inverse that best rebuilds what it was probed with, learned locally.

A map ``f(a) = W a + b`` answers a probe ``ε`` with ``W ε``. Of all matrices, the one that rebuilds white probes from
their answers best in the face of white noise ``η`` of variance ``λ`` is

    ``V = argmin E ‖ε − V (W ε + η)‖² = Wᵀ (W Wᵀ + λ I)⁻¹``

a denoising auto-encoder of the map in closed form. ``W`` is not read: a mirror ``M`` of it is learned from the same
probes and answers (`targetprop.decoders.mirror`), and ``V = Mᵀ (M Mᵀ + λ I)⁻¹``. ``λ`` is relative, in units of the
mean squared singular value of ``M``.

The decoder of a layer is its backward pass with ``V`` where that would read ``W``: activations are undone by their
slopes at the sample at hand, pooling puts values back to where they came from. The eigenvalues of ``V W`` lie between 0
and 1, below 1 by ``λ/(s² + λ)``, and slopes between 0 and 1 keep those of ``J_g J_f`` there, through one map or several
in a row, whatever they have learned: then the iteration converges for small changes (Bengio 2020, arXiv:2007.15139,
asks for a Lipschitz constant of ``g∘f − id`` below 1). Where a layer branches, as a residual block does, branches add
up, and nothing promises it. A convolution's ``V`` is that of its kernel as a matrix on patches, divided by how many
patches an input lies in.

Bengio's paper speaks of auto-encoders per layer; this form of them, damping included, is this project's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from targetprop.decoders.bank import Mirrors
from targetprop.decoders.mirror import WeightMirror
from targetprop.decoders.mirror_bank import MirrorBank
from targetprop.decoders.probes import as_matrix, groups_of
from targetprop.layers import MapUse
from targetprop.layers.convolution import settings, spread
from targetprop.layers.sites import same_view
from targetprop.precision import at_least_float32
from targetprop.settings import check_ranges


@dataclass(frozen=True)
class WeightInverse(WeightMirror):
    """Learn the damped inverse of every map from its own answers to noise and activities.

    Attributes:
        damping: ``λ > 0``, in units of the mean squared singular value of the map.
        probes: see `WeightMirror`.
        share: see `WeightMirror`.
        activity: see `WeightMirror`.
        updates: see `WeightMirror`.
        every: batches between two turns of a map; each turn costs the solution of a system of its smaller side.
        warmup: see `WeightMirror`.
    """

    damping: float = 1.0
    name: ClassVar[str] = "weight-inverse"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_ranges(self, "decoder ", damping=(self.damping > 0, "> 0"))

    def make_bank(self, weights: Mapping[str, Tensor], layers: Mapping[str, Sequence[str]]) -> MirrorBank:
        """Make mirrors with inverses beside them; see `WeightMirror.make_bank`."""
        return InverseBank(weights, layers, self.damping)


class InverseBank(MirrorBank):
    """A mirror ``M`` and an inverse ``V`` of its shape for each weight that a backward pass reads.

    Args:
        weights: the weights by key.
        layers: the keys of the weights of each layer, by layer name.
        damping: ``λ``.
    """

    def __init__(self, weights: Mapping[str, Tensor], layers: Mapping[str, Sequence[str]], damping: float) -> None:
        """Start at zero."""
        super().__init__(weights, layers)
        self._damping = damping
        self.inverses = nn.ParameterDict()
        for key, weight in weights.items():
            self.inverse_of(key, weight)

    def inverse_of(self, key: str, weight: Tensor) -> Tensor:
        """Find the inverse of a weight by its key, ``Vᵀ``, shape of the weight; see `MirrorBank.mirror`."""
        name = key.replace(".", "/")
        if name not in self.inverses or self.inverses[name].shape != weight.shape:
            zero = torch.zeros_like(weight, memory_format=torch.contiguous_format, requires_grad=False)
            self.inverses[name] = nn.Parameter(zero, requires_grad=False)
        return self.inverses[name]

    def mirrors(self) -> Mirrors:
        """Give `inverse_of`: backward passes read inverses; see `Bank.mirrors`."""
        return self.inverse_of

    def settle(self, uses: Sequence[MapUse]) -> None:
        """Invert what mirrors have become; see `MirrorBank.settle`."""
        for use in uses:
            key, weight = use.site.key, use.weight.detach()
            mirror, inverse = (same_view(t(key, use.base), use.base, weight) for t in (self.mirror, self.inverse_of))
            if use.site.kind == "other":  # a product of a form of its own has no matrix
                inverse.copy_(mirror / torch.linalg.vector_norm(mirror).clamp_min(torch.finfo(mirror.dtype).tiny))
                continue
            groups = groups_of(use)
            matrix = at_least_float32(as_matrix(use, mirror, groups))
            as_matrix(use, inverse, groups).copy_(damped_inverse(matrix, self._damping) / _overlap(use))

    def parts(self, name: str) -> list[nn.Module]:
        """List mirrors and inverses of a layer; see `Bank.parts`."""
        keys = [key.replace(".", "/") for key in self.keys_of(name)]
        return [*super().parts(name), nn.ParameterList([self.inverses[key] for key in keys])]

    def kinds(self) -> dict[str, str]:
        """Say whether a layer has inverses of maps; see `Bank.kinds`."""
        return {name: "inverse, learned" if kind == "mirrored" else kind for name, kind in super().kinds().items()}


def damped_inverse(matrix: Tensor, damping: float) -> Tensor:
    """Compute ``M (MᵀM + λ m I)⁻¹``, ``m`` the mean of the squared singular values, by the smaller of two systems.

    Args:
        matrix: ``M``, shape ``(…, d, k)``.
        damping: ``λ > 0``.

    Returns:
        Shape of ``M``; zero for zero.

    >>> damped_inverse(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), damping=1.0)          # 2 / (4 + 4)
    tensor([[0.2500, 0.0000],
            [0.0000, 0.2500]])
    """
    wide = matrix.shape[-1] <= matrix.shape[-2]
    system = matrix.mT @ matrix if wide else matrix @ matrix.mT
    diagonal = system.diagonal(dim1=-2, dim2=-1)
    diagonal += damping * diagonal.mean(-1, keepdim=True) + torch.finfo(matrix.dtype).tiny
    solved = torch.cholesky_inverse(torch.linalg.cholesky_ex(system).L)
    return matrix @ solved if wide else solved @ matrix


def _overlap(use: MapUse) -> float:
    """Count the patches of a convolution that an input lies in at most; one for other maps."""
    if use.site.kind not in ("conv", "conv-transpose"):
        return 1.0
    kernel = use.weight.shape[2:]
    stride = spread(settings(use)["stride"], len(kernel))
    return float(math.prod(-(-size // step) for size, step in zip(kernel, stride, strict=True)))
