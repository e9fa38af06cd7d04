"""Layers on several devices: which process works on which layer, and what they send each other.

Local losses need no graph beyond their layer. So a process keeps the activations, decoders and optimiser state of its
own layers only; activations go up once a step, and of the targets each layer's goes to the owner of the layer below.
Decoders of different layers learn side by side, and so do joint sweeps, which need only the neighbours' last iterates.

>>> import torch
>>> places = Places()
>>> places.owns(3), places.down({2: torch.zeros(1)}, {})
(True, {1: tensor([0.])})
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from targetprop.chain import Chain
from targetprop.ranks import Ranks, Sending, unpack

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class Placement:
    """A map from layer to device: one process of `torch.distributed` works on each device.

    Attributes:
        group: the processes. Every one of them builds the same model and is given the same batches.
        ranks: rank of the process in the group that works on each layer, by layer name; None for stretches of
            neighbouring layers with about as many parameters each.
    """

    group: "dist.ProcessGroup"
    ranks: Mapping[str, int] | None = None

    def places(self, chain: Chain, device: torch.device) -> "Places":
        """Find the owner of every layer.

        Args:
            chain: the layers.
            device: this process' device.

        Returns:
            Who owns what.

        Raises:
            ValueError: a layer has no rank, or one that is not in the group; a rank has no layer.
        """
        size = self.group.size()
        if self.ranks is None:
            owners = _stretches([sum(p.numel() for p in layer.parameters()) for layer in chain.layers], size)
        else:
            chain.check_names(list(self.ranks), "the placement")
            missing = [name for name in chain.names if name not in self.ranks]
            if missing:
                raise ValueError(f"the placement has no rank for layer {missing[0]}; it needs one for each layer")
            owners = [self.ranks[name] for name in chain.names]
        if sorted(set(owners)) != list(range(size)):
            raise ValueError(
                f"the placement gives {len(chain)} layers to ranks {sorted(set(owners))}, and the group has ranks 0 to"
                f" {size - 1}; give each of them a layer"
            )
        return Places(Peers(self.group, device), owners)


class Peers(Ranks):
    """Processes that send each other tensors, not only sums."""

    def exchange(self, sent: Sequence[tuple[Tensor, int]], received: Sequence[tuple[Tensor, int]]) -> None:
        """Send tensors and receive others at the same time.

        Args:
            sent: each with the rank that it goes to.
            received: to be overwritten, each with the rank that it comes from.
        """
        group = self._group
        operations = [dist.P2POp(dist.isend, tensor, group=group, group_peer=peer) for tensor, peer in sent]
        operations += [dist.P2POp(dist.irecv, tensor, group=group, group_peer=peer) for tensor, peer in received]
        if operations:
            with Sending():
                for work in dist.batch_isend_irecv(operations):
                    work.wait()

    def copy_from(self, source: int, tensors: Sequence[Tensor]) -> None:
        """Give every rank the values that one has.

        Args:
            source: that rank.
            tensors: what to overwrite on the others.
        """
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            same = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.detach().reshape(-1).to(self.device) for tensor in same])
            with Sending():
                dist.broadcast(flat, group_src=source, group=self._group)
            if source != self.rank:
                unpack(flat, same)

    def collect(self, mine: object) -> list[object]:
        """Gather an object of each rank, tensors in it on the CPU.

        Args:
            mine: this rank's.

        Returns:
            All of them, in the order of the ranks.
        """
        found: list[object] = [None] * self.size
        with Sending():
            dist.all_gather_object(found, mine, group=self._group)
        return found


class Places:
    """Who owns which layer, and where this process stands; layers are counted from 0.

    Args:
        peers: the processes; None where this one owns all layers.
        owners: rank of the owner of each layer.
    """

    def __init__(self, peers: Peers | None = None, owners: Sequence[int] = ()) -> None:
        """Keep both."""
        self._peers, self._owners = peers, tuple(owners)
        self.ranks: Ranks = Ranks() if peers is None else peers

    @property
    def alone(self) -> bool:
        """Whether this process owns every layer."""
        return self.ranks.alone

    def owns(self, index: int) -> bool:
        """Look a layer up.

        Args:
            index: the layer.

        Returns:
            Whether it is this process'.
        """
        return self.alone or self._owners[index] == self.ranks.rank

    def up(self, value: Tensor, index: int) -> Tensor:
        """Take the output of a layer to the owner of the next one.

        Args:
            value: the output on the owner of the layer; elsewhere a tensor of its shape and type.
            index: the layer.

        Returns:
            The output on both owners; elsewhere what was given.
        """
        return value if self.alone else self._carry(value, self._owners[index], self._owners[index + 1])

    def down(self, values: Mapping[int, Tensor], likes: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Take what belongs to the inputs of layers to the owners of the layers below, all at once.

        Args:
            values: what this process holds, by layer, each ≥ 1.
            likes: tensors of the shapes and type of all of them, by layer; of those that come from elsewhere at least.

        Returns:
            What belongs to the outputs of this process' own layers, by layer.
        """
        found = {index - 1: value for index, value in values.items() if self.owns(index - 1)}
        if self._peers is None:
            return found
        sent, received = [], []
        for index in sorted(likes):
            above, below = self._owners[index], self._owners[index - 1]
            if above == below:
                continue
            if above == self.ranks.rank:
                sent.append((values[index].to(likes[index].dtype).contiguous(), below))
            elif below == self.ranks.rank:
                found[index - 1] = _empty(likes[index])
                received.append((found[index - 1], above))
        self._peers.exchange(sent, received)
        return found

    def spread(self, value: Tensor, index: int) -> Tensor:
        """Give all processes what the owner of a layer has.

        Args:
            value: the value there; elsewhere a tensor of its shape and type.
            index: the layer.

        Returns:
            The value.
        """
        if self._peers is None:
            return value
        found = value.detach().contiguous() if self.owns(index) else _empty(value)
        self._peers.copy_from(self._owners[index], [found])
        return found

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over all processes, in place; those of other processes' layers count as zero.

        Args:
            tensors: what to sum.
        """
        self.ranks.sum_(tensors)

    def total(self, number: Tensor) -> Tensor:
        """Sum a number that each process made of its own layers.

        Args:
            number: this one's, a scalar.

        Returns:
            The sum.
        """
        if self.alone:
            return number
        number = number.clone()
        self.sum_([number])
        return number

    @torch.no_grad()
    def gather(self, modules: Mapping[int, Sequence[nn.Module]]) -> None:
        """Give all processes the parameters and buffers of modules as the owners of their layers have them.

        Args:
            modules: the modules of each layer.
        """
        if self._peers is not None:
            for index, parts in modules.items():
                tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
                self._peers.copy_from(self._owners[index], tensors)

    def collect(self, mine: object) -> list[object]:
        """Gather an object of each process, tensors in it on the CPU.

        Args:
            mine: this one's.

        Returns:
            All of them.
        """
        return [mine] if self._peers is None else self._peers.collect(mine)

    def check_same(self, *batch: object) -> None:
        """Refuse batches that are not the same on all processes.

        Args:
            *batch: inputs and labels; what is no tensor is not looked at.

        Raises:
            ValueError: they differ.
        """
        if not self.alone:
            marks = torch.tensor([mark for part in batch if isinstance(part, Tensor) for mark in _marks(part)])
            if self.ranks.differs(marks.double()):
                raise ValueError(
                    "the processes of a placement were given different batches; give all of them the same, in the same"
                    " order: seed what shuffles and augments the data alike"
                )

    def _carry(self, value: Tensor, source: int, goal: int) -> Tensor:
        if source == goal or self.ranks.rank not in (source, goal) or self._peers is None:
            return value
        if self.ranks.rank == source:
            self._peers.exchange([(value.detach().contiguous(), goal)], [])
            return value
        found = _empty(value)
        self._peers.exchange([], [(found, source)])
        return found


def _empty(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def _marks(values: Tensor) -> list[int]:
    """Length and a checksum of the bits, which rounding cannot make differ."""
    kind = _WHOLE.get(values.element_size())
    if kind is None or not values.numel():
        return [len(values), 0]
    rows = values.detach().contiguous().view(kind).reshape(len(values), -1).sum(1, dtype=torch.int64)
    return [len(values), int((rows * torch.arange(1, len(rows) + 1, device=rows.device)).sum()) % 2**50]


def _stretches(sizes: Sequence[int], parts: int) -> list[int]:
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
