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

from targetprop.batch import Batch
from targetprop.decoders.bank import Bank, LayerBank, build_layer_bank
from targetprop.decoders.conv import ConvDecoder, ConvTransposeDecoder, LearnedMap
from targetprop.decoders.difference_reconstruction import DifferenceReconstruction
from targetprop.decoders.layer import LayerDecoder
from targetprop.decoders.linear import LinearDecoder
from targetprop.decoders.mirror_step import MirrorStep, mirror_conv, mirror_linear
from targetprop.decoders.objective import Generators, Objective
from targetprop.decoders.proposal import Proposal, Rehearsal, look_at_decoder
from targetprop.decoders.registry import ModuleDecoder
from targetprop.decoders.residual import CorrectedDecoder, PathDecoder
from targetprop.finite import check_digits
from targetprop.layers import Chain, LayerRecord, Record, ReplayState, Residual, leaves
from targetprop.precision import at_least_float32, no_autocast

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
        """Check the settings."""
        super().__post_init__()
        if self.probes < 1 or min(self.updates, self.warmup) < 0 or not 0 <= self.activity <= 1:
            raise ValueError(
                "the mirror needs decoder probes ≥ 1, updates ≥ 0, warmup ≥ 0 and activity in [0, 1]; got"
                f" {self.probes}, {self.updates}, {self.warmup} and {self.activity}"
            )

    def build(self, chain: Chain, example: Record, custom: Mapping[str, nn.Module]) -> Bank:
        """Build decoders in style "transpose", and set those to zero that will be mirrors; see `Objective.build`."""
        check_digits((p for layer in chain.layers for p in layer.parameters()), "a mirror")
        bank = build_layer_bank(chain, example, "transpose", custom)
        for layer in example.inverted:
            maps = [part for part, _, _ in mirrored_maps(bank, layer)]
            own = {id(p) for part in maps for p in part.parameters()}
            if maps and all(id(p) in own for p in bank.decoder(layer.name).parameters()):
                bank.mirrored.add(layer.name)
                for parameter in bank.decoder(layer.name).parameters():
                    nn.init.zeros_(parameter).requires_grad_(False)
        return bank

    def propose(
        self, bank: Bank, record: Record, optimizer: torch.optim.Optimizer | None, generators: Generators
    ) -> Proposal:
        """Work out a step of every mirror, and of the decoders that are none; see `Objective.propose`."""
        assert isinstance(bank, LayerBank)
        rest = _OTHERS.propose(bank, record, optimizer, generators) if self.updates else Proposal()
        count = self.updates + (0 if bool(bank.warm) else self.warmup)
        with torch.no_grad(), no_autocast(record.output):
            earlier = self._rehearse(bank, record, generators, count - 1)
            steps = list(self._steps(bank, record, generators)) if count else []
            if earlier is not None:
                earlier.take_back()

        @torch.no_grad()
        def apply() -> None:
            if earlier is not None:
                earlier.repeat()
            for _, step in steps:
                step.take()
            bank.warm.fill_(True)
            rest.apply()

        looks = (look_at_decoder(name, "probe's answer", *step.numbers) for name, step in steps)
        losses = [*(step.share for _, step in steps), *([] if rest.loss is None else [rest.loss])]
        return Proposal(torch.stack(losses).sum() if losses else None, (*looks, *rest.looks), apply)

    def _rehearse(self, bank: LayerBank, record: Record, generators: Generators, count: int) -> Rehearsal | None:
        """Take all steps but the last one."""
        if count < 1:
            return None
        mirrors = [layer.name for layer in record.inverted if layer.name in bank.mirrored]
        earlier = Rehearsal([p for name in mirrors for p in bank.decoder(name).parameters()])
        for _ in range(count):
            for _, step in list(self._steps(bank, record, generators)):
                step.take()
        return earlier

    def _steps(self, bank: LayerBank, record: Record, generators: Generators) -> Iterator[tuple[str, MirrorStep]]:
        """Work out a step of every mirror; convolutions take a second one, from where the first ends."""
        for layer in record.inverted if bank.mirrored else ():
            if layer.name not in bank.mirrored:
                continue
            for part, module, state in mirrored_maps(bank, layer):
                draw, new = _linear_probes if isinstance(part, LinearDecoder) else _conv_probes, None
                activity = state.per_sample[0]
                for drawn in draw(module, activity, self.probes, self.activity, generators[layer.name], record.batch):
                    probes = at_least_float32(drawn)
                    answers = module(probes) - module(torch.zeros_like(probes[:1]))
                    if isinstance(part, LinearDecoder):
                        step = mirror_linear(part.map.weight, probes, answers)
                    else:
                        assert isinstance(part, LearnedMap)
                        step = mirror_conv(part, probes, answers, new)
                    new = step.new
                    yield layer.name, step

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
        """Make the optimiser of the decoders that are no mirrors; see `Objective.make_optimizer`."""
        return _OTHERS.make_optimizer(parameters)


_OTHERS = DifferenceReconstruction(w=0.0, damping=1.0, activation="transpose", share=0.5, penalty="matched")
Map = tuple[ModuleDecoder, nn.Module, ReplayState]


def mirrored_maps(bank: LayerBank, layer: LayerRecord) -> Iterator[Map]:
    """List the learned maps of a layer's decoder beside the modules that they mirror."""
    decoder = bank.decoder(layer.name)
    if isinstance(decoder, LayerDecoder):
        yield from _find(list(decoder.parts), layer.layer.modules, layer.states)


def _find(parts: Sequence[nn.Module], modules: Sequence[nn.Module], states: Sequence[ReplayState]) -> Iterator[Map]:
    for part, module, state in zip(parts, modules, states, strict=False):
        if isinstance(part, CorrectedDecoder | PathDecoder):
            assert isinstance(module, Residual)
            paths = (part,) if isinstance(part, PathDecoder) else (part.shortcut, part.branch)
            for path in (path for path in paths if isinstance(path, PathDecoder)):
                inside = [leaf for _, leaf in leaves((module.shortcut, module.branch)[path.place])]
                yield from _find(list(path.parts), inside, state.inner[path.place].inner)
        elif isinstance(part, LinearDecoder | ConvDecoder | ConvTransposeDecoder):
            yield part, module, state


def _linear_probes(
    module: nn.Module, a: Tensor, probes: int, activity: float, generator: torch.Generator, batch: Batch
) -> Iterator[Tensor]:
    """White noise and rows of the input drawn at random, in one block; more than its dimensions are of no use."""
    width = a.shape[-1]
    count = min(probes, width)
    active = round(activity * count)
    noise = torch.empty(count - active, width, dtype=a.dtype, device=a.device).normal_(generator=generator)
    yield torch.cat([noise, batch.pick(a.reshape(len(a), a.shape[1:-1].numel(), width), active, generator)])


def _conv_probes(
    module: nn.Module, a: Tensor, probes: int, activity: float, generator: torch.Generator, batch: Batch
) -> Iterator[Tensor]:
    """Likewise, as many images as the patches of the convolution need."""
    assert isinstance(module, _ConvNd)
    patch = module.weight.numel() / module.out_channels
    count = min(probes, max(1, math.ceil(_COVERAGE * patch * math.prod(module.stride) / math.prod(a.shape[2:]))))
    if activity < 1:
        yield torch.empty(count, *a.shape[1:], dtype=a.dtype, device=a.device).normal_(generator=generator)
    if activity > 0:
        yield batch.pick(a.unsqueeze(1), count, generator)
