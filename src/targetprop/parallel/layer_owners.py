"""Which process works on which layers of one network.

Local losses need no graph beyond their layer. So a process keeps the activations, decoders and optimiser state of its
own layers only; activations go up once a step, and targets go down. Decoders of different layers learn side by side,
and so do joint sweeps, which need only the neighbours' last iterates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from targetprop.layers import Network, Record
from targetprop.precision import at_least_float32

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class Placement:
    """A map from layer to device: one process of `torch.distributed` works on each device.

    Attributes:
        group: the processes. Every one of them builds the same model and is given the same batches.
        ranks: rank of the process in the group that works on each layer, by layer name; the layers of a rank are
            neighbours. None for stretches with about as many parameters each.
    """

    group: "dist.ProcessGroup"
    ranks: Mapping[str, int] | None = None

    def owners(self, network: Network) -> list[int]:
        """Find the owner of every layer.

        Args:
            network: the layers.

        Returns:
            A rank per layer.

        Raises:
            ValueError: a layer has no rank, or one that is not in the group; a rank has no layer, or layers that are
                not neighbours.
        """
        size = self.group.size()
        if self.ranks is None:
            owners = stretches([sum(p.numel() for p in layer.parameters()) for layer in network.layers], size)
        else:
            network.check_names(list(self.ranks), "the placement")
            missing = [name for name in network.names if name not in self.ranks]
            if missing:
                raise ValueError(f"the placement has no rank for layer {missing[0]}; it needs one for each layer")
            owners = [self.ranks[name] for name in network.names]
        if sorted(set(owners)) != list(range(size)):
            raise ValueError(
                f"the placement gives {len(network)} layers to ranks {sorted(set(owners))}, and the group has ranks 0"
                f" to {size - 1}; give each of them a layer"
            )
        if sum(a != b for a, b in zip(owners, owners[1:], strict=False)) != size - 1:
            raise ValueError(f"the placement gives ranks {owners} to the layers; give each rank neighbouring layers")
        return owners


@dataclass(frozen=True)
class LayerOwners:
    """A process' stretch of layers, and what travels to and from its neighbours.

    Attributes:
        owners: rank of the owner of each layer.
        own: this process' layers, counted from 0.
        below: rank that works on the layer below them; None if they begin with the first layer.
        above: rank that works on the layer above them; None if they end with the last layer.
        sample: shape of a sample of the network's input.
        lower: a sample of the input of the lowest of them.
        upper: a sample of the output of the highest of them.
        output: a sample of the network's output.
    """

    owners: tuple[int, ...]
    own: range
    below: int | None
    above: int | None
    sample: torch.Size
    lower: Tensor
    upper: Tensor
    output: Tensor

    @classmethod
    def find(cls, owners: Sequence[int], rank: int, example: Record) -> "LayerOwners":
        """Find the stretch of one rank."""
        start, stop = owners.index(rank), len(owners) - list(owners)[::-1].index(rank)
        return cls(
            tuple(owners),
            range(start, stop),
            owners[start - 1] if start else None,
            owners[stop] if stop < len(owners) else None,
            example.layers[0].x.shape[1:],
            example.layers[start].x[0],
            example.layers[stop - 1].h[0],
            example.output[0],
        )

    def check_input(self, x: Tensor) -> None:
        """Refuse samples of another shape than the example's, by a ``ValueError``."""
        if x.shape[1:] != self.sample:
            raise ValueError(
                f"samples have shape {tuple(x.shape[1:])}, and the example input's {tuple(self.sample)}; with a"
                " placement they must agree"
            )

    def change_of(self, sample: Tensor, rows: int) -> Tensor:
        """Make room for the change of an activation."""
        return room(at_least_float32(sample), rows)


def room(sample: Tensor, rows: int) -> Tensor:
    """Make an empty tensor for as many samples."""
    return torch.empty(rows, *sample.shape, dtype=sample.dtype, device=sample.device)


def marks(values: Tensor) -> list[int]:
    """Take the length of a tensor and a checksum of its bits, which rounding cannot make differ."""
    kind = _WHOLE.get(values.element_size())
    if kind is None or not values.numel():
        return [len(values), 0]
    rows = values.detach().contiguous().view(kind).reshape(len(values), -1).sum(1, dtype=torch.int64)
    return [len(values), int((rows * torch.arange(1, len(rows) + 1, device=rows.device)).sum()) % 2**50]


def stretches(sizes: Sequence[int], parts: int) -> list[int]:
    """Cut a sequence into stretches whose largest sum is as small as can be; returns each member's stretch."""
    if parts > len(sizes):
        return list(range(len(sizes)))
    best: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {(0, 0): (0, ())}
    for part in range(1, parts + 1):
        for end in range(part, len(sizes) - (parts - part) + 1):
            best[part, end] = min(
                (max(best[part - 1, start][0], sum(sizes[start:end])), (*best[part - 1, start][1], start))
                for start in range(part - 1, end)
                if (part - 1, start) in best
            )
    starts = best[parts, len(sizes)][1]
    return [sum(start <= index for start in starts) - 1 for index in range(len(sizes))]
