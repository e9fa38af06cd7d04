r"""Weight mirrors: the transpose of every linear map, learned from its own answers to probes, map by map.

A map ``f(a) = W a + b`` answers a probe ``ε`` with ``f(ε) − f(0) = W ε``. The decoder's ``V`` is to become ``Wᵀ``; it
sees probes and answers, never ``W``. With the probes as rows of ``E`` and the answers as rows of ``Z``:

    linear map     ``V ← V + Eᵀ (E Eᵀ + μ I)⁻¹ (Z − E V)``, the nearest ``V`` that explains the answers
    convolution    a gradient step on ``‖Z − Vᵀ E‖²``, as long as an exact line search makes it

The squared error of ``V`` shrinks by ``1 − n/d`` a step, ``n`` probes in ``d`` dimensions; there is no learning rate
and no optimiser state. A part of the probes is white noise and the rest activities of the batch: local updates
``ΔW = Σ δ aᵀ`` change ``W`` only along activities, so that is where a decoder falls behind.

Since the transpose of a composition is the composition of transposes, this serves whole layers where everything
between the learned maps is decoded by its own transpose (style "transpose").

Source: weight mirrors, Akrout 2019, arXiv:1904.05391, which learn ``Wᵀ`` from noise by a Hebbian rule; the step is
Kaczmarz' projection onto the equations of a block of probes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from targetprop.chain import Chain, leaves
from targetprop.decoders.bank import Bank, LayerBank, build_layer_bank
from targetprop.decoders.conv import ConvDecoder, ConvTransposeDecoder, LearnedMap
from targetprop.decoders.difference_reconstruction import DifferenceReconstruction
from targetprop.decoders.layer import LayerDecoder
from targetprop.decoders.linear import LinearDecoder
from targetprop.decoders.mirror_step import Move, mirror_conv, mirror_linear
from targetprop.decoders.objective import Objective, failed_decoder
from targetprop.decoders.registry import ModuleDecoder
from targetprop.decoders.residual import CorrectedDecoder, PathDecoder
from targetprop.finite import check_digits
from targetprop.forward import Record
from targetprop.guard import Guard
from targetprop.precision import exactly, widened
from targetprop.replay import Side
from targetprop.residual import Residual
from targetprop.share import Share

_COVERAGE = 2.0  # probes of a convolution per dimension of a patch, beyond which more tell little


@dataclass(frozen=True)
class WeightMirror(Objective):
    """Learn ``J_fᵀ`` by mirroring every linear map and convolution of a layer.

    Layers whose decoder learns anything else (a user's own module) are trained by difference reconstruction with
    ``(w, λ) = (0, 1)``, on noise too.

    Attributes:
        probes: probes of every map and step; a convolution takes as many images as its patches need, at most this.
        activity: share of the probes that are activities of the batch, in [0, 1]; the others are white noise.
        updates: steps of every mirror per batch, ≥ 0.
        warmup: further steps on the first batch, for updates whose steps do not shrink with their targets; ``d/probes``
            of them cover a map of ``d`` inputs.
    """

    probes: int = 64
    activity: float = 0.5
    updates: int = 1
    warmup: int = 0
    name: ClassVar[str] = "mirror"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: a setting is out of its range.
        """
        super().__post_init__()
        if self.probes < 1 or min(self.updates, self.warmup) < 0 or not 0 <= self.activity <= 1:
            raise ValueError(
                "the mirror needs decoder probes ≥ 1, updates ≥ 0, warmup ≥ 0 and activity in [0, 1]; got"
                f" {self.probes}, {self.updates}, {self.warmup} and {self.activity}"
            )

    def build(
        self, chain: Chain, example: Record, inner: list[tuple[Tensor, ...]], custom: Mapping[str, nn.Module]
    ) -> Bank:
        """Build decoders in style "transpose", and set those to zero that will be mirrors; see `Objective.build`."""
        check_digits((p for layer in chain.layers for p in layer.parameters()), "a mirror")
        bank = build_layer_bank(chain, example, inner, "transpose", custom)
        for index in range(1, len(chain)):
            maps = [part for part, _, _ in mirrored_maps(bank, index, example)]
            own = {id(p) for part in maps for p in part.parameters()}
            if maps and all(id(p) in own for p in bank.decoder(index).parameters()):
                bank.mirrored.add(index)
                for parameter in bank.decoder(index).parameters():
                    nn.init.zeros_(parameter).requires_grad_(False)
        return bank

    @torch.no_grad()
    def _moves(self, bank: LayerBank, record: Record, generator: torch.Generator) -> Iterator[tuple[int, Move | None]]:
        """Work out a step of every mirror; convolutions take a second one, from where the first ends."""
        for index in sorted(bank.mirrored):
            for part, module, side in mirrored_maps(bank, index, record):
                draw, new = _linear_probes if isinstance(part, LinearDecoder) else _conv_probes, None
                for drawn in draw(module, side.per_sample[0], self.probes, self.activity, generator, record.share):
                    if not record.places.owns(index):  # drawn all the same: random numbers stay in step everywhere
                        yield index, None
                        continue
                    probes = widened(drawn)
                    answers = module(probes) - module(torch.zeros_like(probes[:1]))
                    if isinstance(part, LinearDecoder):
                        move = mirror_linear(part.map.weight, probes, answers)
                    else:
                        assert isinstance(part, LearnedMap)
                        move = mirror_conv(part, probes, answers, new)
                    new = move.new
                    yield index, move

    def train(
        self,
        bank: Bank,
        record: Record,
        optimizer: torch.optim.Optimizer | None,
        generator: torch.Generator,
        guard: Guard,
    ) -> Tensor | None:
        """Step every mirror, and the decoders that are none; see `Objective.train`.

        Args:
            bank: the decoders.
            record: the forward pass of the batch.
            optimizer: over the parameters of decoders that are no mirrors.
            generator: source of noise.
            guard: must pass before anything changes for good.

        Returns:
            The share of the answers that the mirrors missed before their last step, summed over maps (and over kinds
            of probes, where these are taken one after the other), plus the loss of the others; None if nothing is
            learned.
        """
        assert isinstance(bank, LayerBank)
        cold = bool(self.warmup) and not bool(bank.warm)
        steps = self.updates + (self.warmup if cold else 0)
        kept, moves = [], []
        with torch.no_grad(), exactly(record.output):
            if steps > 1:  # these are taken at once, and taken back if the last one fails
                own = [index for index in bank.mirrored if record.places.owns(index)]
                kept = [(p, p.clone()) for index in own for p in bank.decoder(index).parameters()]
            for _ in range(steps - 1):
                for _, move in list(self._moves(bank, record, generator)):
                    if move is not None:
                        move.take()
            if steps:
                moves = list(self._moves(bank, record, generator))
        for index, move in moves:
            guard.watch(failed_decoder(record.layers[index], "probe's answer"), *(() if move is None else move.numbers))
        rest = _OTHERS.train(bank, record, optimizer, generator, guard) if self.updates else None
        with torch.no_grad():
            if not guard.passes():
                for parameter, before in kept:
                    parameter.copy_(before)
                return None
            losses = [move.take() for _, move in moves if move is not None]
        bank.warm.fill_(True)
        if not moves:
            return rest
        missed = record.places.total(torch.stack(losses).sum() if losses else record.output.new_zeros(()))
        return missed if rest is None else missed + rest

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
        """Make the optimiser of the decoders that are no mirrors; see `Objective.make_optimizer`."""
        return _OTHERS.make_optimizer(parameters)


_OTHERS = DifferenceReconstruction(w=0.0, damping=1.0, activation="transpose", share=0.5, penalty="matched")
Map = tuple[ModuleDecoder, nn.Module, Side]


def mirrored_maps(bank: LayerBank, index: int, record: Record) -> Iterator[Map]:
    """List the learned maps of a layer's decoder beside the modules that they mirror.

    Args:
        bank: the decoders.
        index: the layer, ≥ 1.
        record: a forward pass.

    Yields:
        Decoder of the map, the map itself, and its side data, whose one tensor is the input of the map.
    """
    decoder, layer = bank.decoder(index), record.layers[index]
    if isinstance(decoder, LayerDecoder):
        yield from _find(list(decoder.parts), layer.layer.modules, layer.sides)


def _find(parts: Sequence[nn.Module], modules: Sequence[nn.Module], sides: Sequence[Side]) -> Iterator[Map]:
    for part, module, side in zip(parts, modules, sides, strict=False):
        if isinstance(part, CorrectedDecoder | PathDecoder):
            assert isinstance(module, Residual)
            paths = (part,) if isinstance(part, PathDecoder) else (part.shortcut, part.branch)
            for path in (path for path in paths if isinstance(path, PathDecoder)):
                inside = [leaf for _, leaf in leaves((module.shortcut, module.branch)[path.place])]
                yield from _find(list(path.parts), inside, side.inner[path.place].inner)
        elif isinstance(part, LinearDecoder | ConvDecoder | ConvTransposeDecoder):
            yield part, module, side


def _linear_probes(
    module: nn.Module, a: Tensor, probes: int, activity: float, generator: torch.Generator, share: Share
) -> Iterator[Tensor]:
    """White noise and rows of the input drawn at random, in one block; more than its dimensions are of no use."""
    share, a = share.times(a.shape[1:-1].numel()), a.reshape(-1, a.shape[-1])
    count = min(probes, a.shape[1])
    active = round(activity * count)
    noise = torch.empty(count - active, a.shape[1], dtype=a.dtype, device=a.device).normal_(generator=generator)
    rows = torch.randint(share.total, (active,), generator=generator, device=a.device)
    yield torch.cat([noise, share.take(a, rows)])


def _conv_probes(
    module: nn.Module, a: Tensor, probes: int, activity: float, generator: torch.Generator, share: Share
) -> Iterator[Tensor]:
    """Likewise, as many images as the patches of the convolution need."""
    assert isinstance(module, _ConvNd)
    patch = module.weight.numel() / module.out_channels
    count = min(probes, max(1, math.ceil(_COVERAGE * patch * math.prod(module.stride) / math.prod(a.shape[2:]))))
    if activity < 1:
        yield torch.empty(count, *a.shape[1:], dtype=a.dtype, device=a.device).normal_(generator=generator)
    if activity > 0:
        yield share.take(a, torch.randint(share.total, (count,), generator=generator, device=a.device))
