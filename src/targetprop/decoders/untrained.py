"""Decoders that are not trained by gradient descent: fixed, exact, none, and ridge regression in closed form."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from targetprop.batch import Batch
from targetprop.decoders.affine import AffineDecoder, BoundAffine
from targetprop.decoders.bank import Bank, LayerBank, build_layer_bank
from targetprop.decoders.layer import Applied, LayerDecoder, Part, Scaled, Transposed, reciprocal
from targetprop.decoders.linearised import LinearisedDecoder
from targetprop.decoders.maps import BoundMap, ConvDecoder, MapDecoder
from targetprop.decoders.objective import Generators, Moved, Noise, Objective, perturbed
from targetprop.decoders.proposal import Proposal, look_at_decoder
from targetprop.decoders.registry import Style
from targetprop.finite import Look, check_digits
from targetprop.layers import Network, Record
from targetprop.regression import Covariance, Moments
from targetprop.settings import check_ranges


@dataclass(frozen=True)
class NoDecoder(Objective):
    """No decoders at all, for rules that invert without one."""

    name: ClassVar[str] = "none"

    def build(self, network: Network, example: Record, custom: Mapping[str, nn.Module]) -> Bank:
        """Build an empty bank; see `Objective.build`."""
        return LayerBank({}, network.names)


@dataclass(frozen=True)
class Fixed(Objective):
    """Random decoders that stay as they were drawn (FW-DTP, Shibuya 2023).

    Attributes:
        activation: how activations and norms are decoded, see `Learned`.
    """

    activation: Style = "identity"
    name: ClassVar[str] = "fixed"
    derivatives: ClassVar[bool] = False

    def build(self, network: Network, example: Record, custom: Mapping[str, nn.Module]) -> Bank:
        """Build decoders and freeze them; see `Objective.build`."""
        make = partial(LayerDecoder, self.activation)
        return build_layer_bank(network, example, make, custom).requires_grad_(False)


@dataclass(frozen=True)
class Exact(Objective):
    """``J_fᵀ (w J_f J_fᵀ + λ I)⁻¹`` at the forward activation, by the layer's own derivative.

    It reads the forward weights, so it is a reference, not a local learning rule.

    Attributes:
        w: weight of the inverse, ≥ 0; ``(0, 1)`` is the exact transpose, ``(1, 0)`` the pseudo-inverse.
        damping: ``λ ≥ 0``.
        max_steps: most steps of conjugate gradients.
    """

    w: float = 1.0
    damping: float = 0.0
    max_steps: int = 200
    name: ClassVar[str] = "exact"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.w < 0 or self.damping < 0 or self.w == self.damping == 0:
            raise ValueError(f"decoder w and damping must be ≥ 0, and not both 0; got {self.w} and {self.damping}")
        if self.max_steps < 1:
            raise ValueError(f"decoder max_steps must be ≥ 1; got {self.max_steps}")

    def build(self, network: Network, example: Record, custom: Mapping[str, nn.Module]) -> Bank:
        """Build linearised decoders; see `Objective.build`."""
        make = lambda record: LinearisedDecoder(self.w, self.damping, self.max_steps)  # noqa: E731
        return build_layer_bank(network, example, make, custom)


@dataclass(frozen=True)
class Ridge(Objective):
    """Affine decoders by ridge regression of ``h + ε`` on ``f(h + ε)``: `Denoising` solved instead of stepped.

    Attributes:
        damping: ridge, relative to the mean of the diagonal of the covariance.
        noise: scale ``s`` of the perturbations.
        decay: share of the old moments that each batch keeps, in [0, 1).
        every: batches between two solutions.
    """

    damping: float = 1e-2
    noise: float = 0.1
    decay: float = 0.95
    every: int = 5
    name: ClassVar[str] = "ridge"
    derivatives: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        check_ranges(
            self, "decoder ",
            damping=(self.damping >= 0, "≥ 0"),
            noise=(self.noise > 0, "a scale > 0"),
            decay=(0 <= self.decay < 1, "a share in [0, 1)"),
            every=(self.every >= 1, "a number of batches ≥ 1"),
        )  # fmt: skip

    def build(self, network: Network, example: Record, custom: Mapping[str, nn.Module]) -> Bank:
        """Build affine decoders with their running moments; see `Objective.build`."""
        check_digits((p for layer in network.layers for p in layer.parameters()), "ridge regression")
        bank = build_layer_bank(network, example, partial(LayerDecoder, "identity"), custom).requires_grad_(False)
        for layer in example.inverted:
            if layer.name in custom:
                continue
            decoder = bank.decoder(layer.name)
            assert isinstance(decoder, LayerDecoder)
            maps = [part for part in decoder.modules() if isinstance(part, MapDecoder | AffineDecoder)]
            others = any(isinstance(part, Applied) for part in decoder.parts(layer))
            if len(maps) != 1 or others or isinstance(maps[0], ConvDecoder):
                raise ValueError(
                    f"ridge regression needs a decoder that is one affine map, and layer {layer.name} has another kind;"
                    " choose a different decoder objective"
                )
            bank.keep_moments(layer.name, _Moments(_matrix(maps[0])[0], self.decay, self.damping, self.every))
        return bank

    @torch.no_grad()
    def propose(
        self, bank: Bank, record: Record, optimizer: torch.optim.Optimizer | None, generators: Generators, moved: Moved
    ) -> Proposal:
        """Work out the moments and, every few batches, the decoders; see `Objective.propose`."""
        assert isinstance(bank, LayerBank)
        losses: list[Tensor] = []
        looks: list[Look] = []
        fits: list[Callable[[], None]] = []
        for layer in record.inverted:
            moments = bank.moments_of(layer.name)
            if moments is None:
                continue
            assert isinstance(moments, _Moments)
            eps = Noise(record, layer, self.noise, generators[layer.name]).like(layer.x)
            clean, seen = layer.x + eps, perturbed(layer, eps)
            losses.append(record.batch.mean((bank.inverse(layer)(seen) - clean).square().flatten(1).sum(1)))
            decoder = bank.decoder(layer.name)
            assert isinstance(decoder, LayerDecoder)
            (weight, bias), a, b = _regression(decoder.parts(layer), seen, clean)
            fit = moments.fit(a, b, record.batch)
            looks += [look_at_decoder(layer.name, "loss", losses[-1], clean, seen), fit.look(layer.name)]
            fits.append(partial(moments.keep, weight, bias, fit))

        def apply() -> None:
            for keep in fits:
                keep()

        return Proposal(torch.stack(losses).sum() if losses else None, tuple(looks), apply)


@dataclass(frozen=True, eq=False)
class _Fit:
    """One more batch in a regression: the moments, and the decoder's weight and bias in one matrix, if solved anew."""

    inputs: Moments
    cross: Tensor
    solution: Tensor | None

    def look(self, name: str) -> Look:
        solved = () if self.solution is None else (self.solution,)
        return look_at_decoder(name, "regression", self.inputs.average, self.cross, *solved)


class _Moments(nn.Module):
    """Running moments of one decoder's input ``a = (y, 1)`` and output."""

    cross: Tensor

    def __init__(self, weight: Tensor, decay: float, damping: float, every: int) -> None:
        super().__init__()
        self.inputs = Covariance(weight.shape[1] + 1, decay, damping, every).to(weight)
        self.register_buffer("cross", weight.new_zeros(weight.shape[0], weight.shape[1] + 1))

    def fit(self, seen: Tensor, clean: Tensor, batch: Batch) -> _Fit:
        a = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1).to(self.cross.dtype)
        inputs, decay = self.inputs.observe(a, batch), self.inputs.decay
        cross, _ = batch.move_average(self.cross, clean.to(a.dtype), a, decay)
        solved = (inputs.count - 1) % self.inputs.every == 0
        return _Fit(inputs, cross, inputs.solve(cross / (1 - decay**inputs.count)) if solved else None)

    @torch.no_grad()
    def keep(self, weight: Tensor, bias: Tensor, fit: _Fit) -> None:
        self.inputs.keep(fit.inputs)
        self.cross = fit.cross
        if fit.solution is not None:
            weight.copy_(fit.solution[:, :-1])
            bias.copy_(fit.solution[:, -1])


def _matrix(decoder: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    """Find weight and bias of a decoder that is one affine map."""
    owner = decoder.map if isinstance(decoder, AffineDecoder) else decoder
    return owner.get_parameter("weight"), owner.get_parameter("bias")


def _regression(
    parts: Sequence[Part], seen: Tensor, clean: Tensor
) -> tuple[tuple[nn.Parameter, nn.Parameter], Tensor, Tensor]:
    """Write reconstruction as a regression: the parameters, and rows of what the map is given and should give."""
    place = next(place for place, part in enumerate(parts) if isinstance(part, BoundMap | BoundAffine))
    middle = parts[place]
    for part in parts[:place]:
        seen = part(seen)
    for part in reversed(parts[place + 1 :]):
        clean = _again(part, clean)
    if isinstance(middle, BoundMap):
        matrix = middle.weight, middle.bias
        return matrix, seen.reshape(-1, middle.weight.shape[1]), clean.reshape(-1, len(middle.bias))  # pyright: ignore
    assert isinstance(middle, BoundAffine)
    rows, decoder = middle.rows(seen), middle.decoder
    clean = _positions(clean, decoder, rows)
    return _matrix(decoder), rows.flatten(0, 1), (clean - rows if decoder.residual else clean).flatten(0, 1)


def _again(part: Part, x: Tensor) -> Tensor:
    """Do to a layer's input what a part below the learned map undoes."""
    if isinstance(part, Scaled):
        return reciprocal(part.diagonal) * x
    assert isinstance(part, Transposed)
    return part.jacobian.push(x)


def _positions(x: Tensor, decoder: AffineDecoder, rows: Tensor) -> Tensor:
    x = x.movedim(1, -1) if decoder.first else x
    return x.reshape(*rows.shape[:2], -1)
