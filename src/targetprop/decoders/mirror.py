r"""Weight mirrors: a copy of every weight for the way back, learned from its map's own answers to probes.

A map ``f(a) = W a + b`` answers a probe ``ε`` with ``f(ε) − f(0) = W ε``. A mirror ``V`` that has become ``W`` gives
the layer's transpose; it sees probes and answers, never ``W``. With the probes as rows of ``E`` and the answers as rows
of ``Z``,

    ``V ← V + Eᵀ (E Eᵀ + μ I)⁻¹ (Z − E V)``, the nearest ``V`` that explains the answers

where ``V`` is written as what multiplies rows from the right. A convolution is probed by patches of the size of its
kernel. Products of another form that are linear in ``W`` take a gradient step on ``‖Z − f_V(E)‖²``, as long as an exact
line search makes it.

The squared error of ``V`` shrinks by ``1 − n/d`` a step, ``n`` probes in ``d`` dimensions; there is no learning rate
and no optimiser state. A part of the probes is white noise, and the rest lies where a mirror falls behind. An update
that remembers its changes ``ΔW`` gives combinations of their rows, ``ωᵀ ΔW`` with ``ω`` white noise: a few of them
catch most of a matrix of few leading directions (Halko, Martinsson & Tropp 2011, arXiv:0909.4061). Else they are
activities of the batch, along which local updates ``ΔW = Σ δ aᵀ`` change ``W``.

What has no weights pulls changes back by its own derivative, so with mirrors the backward pass of a layer, whatever is
in it, is the layer's transpose.

Source: weight mirrors, Akrout 2019, arXiv:1904.05391, which learn ``Wᵀ`` from noise by a Hebbian rule; the step is
Kaczmarz' projection onto the equations of a block of probes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from targetprop.batch import Batch
from targetprop.decoders.bank import Bank
from targetprop.decoders.mirror_bank import MirrorBank
from targetprop.decoders.mirror_step import MirrorStep, descend, distinct_parts, project
from targetprop.decoders.objective import Generators, Moved, Objective
from targetprop.decoders.probes import Probes, inputs, probe, rows
from targetprop.decoders.proposal import Proposal, Rehearsal, look_at_mirror
from targetprop.finite import check_digits
from targetprop.layers import MapUse, Network, Record
from targetprop.precision import no_autocast
from targetprop.settings import check_ranges

_FEW = 8  # probes that every map gets
_BLOCK = 256  # probes at once, of a warm-up
_MOST = 100  # probes per input of a warm-up: beyond some tens, nothing is left to learn


@dataclass(frozen=True)
class WeightMirror(Objective):
    """Learn the transpose of every map by mirroring its weight.

    Attributes:
        probes: most probes of every map and step.
        share: most probes as a share of the rows that a map is applied to, samples times positions, so that mirrors
            cost little beside it; but eight at least.
        activity: share of the probes that lie along changes of the weights, or are activities of the batch where the
            update does not tell, in [0, 1]; the others are white noise.
        updates: steps of every mirror that has its turn, ≥ 0.
        every: batches between two turns of a mirror, ≥ 1; mirrors take turns, and each has as many times the probes.
        warmup: white noise on the first batch, in probes for each input of a map, 0 to 100: ``c`` leave ``e^{−c}``
            of the squared error. Products of another form take ten steps for each.
    """

    probes: int = 64
    share: float = 0.125
    activity: float = 0.5
    updates: int = 1
    every: int = 1
    warmup: float = 0.0
    name: ClassVar[str] = "mirror"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_ranges(
            self, "decoder ",
            probes=(self.probes >= 1, "a number of probes ≥ 1"),
            share=(self.share > 0, "a share of the rows > 0"),
            activity=(0 <= self.activity <= 1, "a share of the probes in [0, 1]"),
            updates=(self.updates >= 0, "a number of steps ≥ 0"),
            every=(self.every >= 1, "a number of batches ≥ 1"),
            warmup=(0 <= self.warmup <= _MOST, f"a number of probes per input in [0, {_MOST}]"),
        )  # fmt: skip

    def build(self, network: Network, example: Record, custom: Mapping[str, nn.Module]) -> Bank:
        """Make a mirror for every weight that a backward pass reads; see `Objective.build`."""
        if custom:
            raise ValueError(
                f"decoders names layer {next(iter(custom))!r}, and mirrors need no decoders; choose a method that"
                " learns decoders, such as 'dtp'"
            )
        uses = [use for use in example.uses() if use.site.needed]
        check_digits((use.weight for use in uses), "a mirror")
        layers = {layer.name: [use.site.key for use in layer.maps if use.site.needed] for layer in example.layers}
        return self.make_bank({use.site.key: use.base for use in uses}, layers)

    def make_bank(self, weights: Mapping[str, Tensor], layers: Mapping[str, Sequence[str]]) -> MirrorBank:
        """Make the mirrors.

        Args:
            weights: the weights by key.
            layers: the keys of the weights of each layer, by layer name.

        Returns:
            The bank.
        """
        return MirrorBank(weights, layers)

    def propose(
        self, bank: Bank, record: Record, optimizer: torch.optim.Optimizer | None, generators: Generators, moved: Moved
    ) -> Proposal:
        """Work out a step of the mirrors that have their turn; see `Objective.propose`."""
        assert isinstance(bank, MirrorBank)
        uses, seen = distinct_parts(use for use in record.uses() if use.site.needed), int(bank.seen)
        cold, mirrors = self.warmup > 0 and seen == 0, {u.site.key: bank.mirror(u.site.key, u.base) for u in uses}
        known = bank.keys()
        turns = {key for turn, key in enumerate(known) if cold or (turn + seen) % self.every == 0}
        uses = [use for use in uses if use.site.key in turns]
        mirrors = {key: mirror for key, mirror in mirrors.items() if key in turns}
        with torch.no_grad(), no_autocast(record.output):
            earlier = Rehearsal(list(mirrors.values())) if cold or self.updates > 1 else None
            for use in uses if cold else ():
                self._warm_up(use, mirrors[use.site.key], generators[use.site.key], record.batch)
            for _ in range(self.updates - 1):
                for _, step in self._steps(uses, mirrors, generators, record.batch, moved):
                    step.take()
            steps = list(self._steps(uses, mirrors, generators, record.batch, moved)) if self.updates else []
            if earlier is not None:
                earlier.take_back()

        @torch.no_grad()
        def apply() -> None:
            if earlier is not None:
                earlier.repeat()
            for _, step in steps:
                step.take()
            bank.settle(uses)
            bank.seen.add_(1)

        looks = tuple(look_at_mirror(key, step.missed) for key, step in steps)
        loss = torch.stack([step.share for _, step in steps]).sum() * (len(known) / len(turns)) if steps else None
        return Proposal(loss, looks, apply)

    def _warm_up(self, use: MapUse, mirror: Tensor, generator: torch.Generator, batch: Batch) -> None:
        """Send white noise until the map is covered, in blocks; the mirror is changed at once."""
        if use.site.kind == "other":
            for _ in range(ceil(10 * self.warmup)):
                descend(use, mirror, generator, batch).take()
            return
        left = ceil(self.warmup * inputs(use))
        while left > 0:
            (step,) = project([probe(use, mirror, min(left, _BLOCK), 0.0, generator, batch, None)])
            step.take()
            left -= _BLOCK

    def _steps(
        self, uses: Sequence[MapUse], mirrors: Mapping[str, Tensor], generators: Generators, batch: Batch,
        moved: Moved,
    ) -> Iterator[tuple[str, MirrorStep]]:  # fmt: skip
        """Work out a step of every mirror."""
        alike: dict[Any, list[tuple[str, Probes]]] = {}
        for use in uses:
            key = use.site.key
            if use.site.kind == "other":
                yield key, descend(use, mirrors[key], generators[key], batch)
                continue
            count = self.every * min(self.probes, max(_FEW, int(self.share * rows(use, batch))))
            probes = probe(use, mirrors[key], count, self.activity, generators[key], batch, moved)
            size = probes.e.shape[1:], probes.z.shape[2], probes.e.dtype, probes.e.device
            alike.setdefault(size, []).append((key, probes))
        for found in alike.values():  # many small matrices at once cost hardly more than one
            yield from zip((key for key, _ in found), project([probes for _, probes in found]), strict=True)
