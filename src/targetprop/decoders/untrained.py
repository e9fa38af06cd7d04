"""Decoders that are not trained by gradient descent: fixed, exact, none, and ridge regression in closed form."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from targetprop.chain import Chain
from targetprop.decoders.bank import Bank, LayerBank, build_layer_bank
from targetprop.decoders.linear import LinearDecoder
from targetprop.decoders.linearised import LinearisedDecoder
from targetprop.decoders.objective import Noise, Objective, failed_decoder, perturbed
from targetprop.decoders.registry import Style
from targetprop.finite import check_digits, squares_are_finite
from targetprop.forward import Record
from targetprop.guard import Guard
from targetprop.regression import Covariance
from targetprop.settings import check_ranges
from targetprop.share import Share

Inner = list[tuple[Tensor, ...]]


@dataclass(frozen=True)
class NoDecoder(Objective):
    """No decoders at all, for rules that invert without one."""

    name: ClassVar[str] = "none"

    def build(self, chain: Chain, example: Record, inner: Inner, custom: Mapping[str, nn.Module]) -> Bank:
        """Build an empty bank; see `Objective.build`."""
        return LayerBank({}, chain.names)


@dataclass(frozen=True)
class Fixed(Objective):
    """Random decoders that stay as they were drawn (FW-DTP, Shibuya 2023).

    Attributes:
        activation: how activations and norms are decoded, see `Learned`.
    """

    activation: Style = "identity"
    name: ClassVar[str] = "fixed"

    def build(self, chain: Chain, example: Record, inner: Inner, custom: Mapping[str, nn.Module]) -> Bank:
        """Build decoders and freeze them; see `Objective.build`."""
        return build_layer_bank(chain, example, inner, self.activation, custom).requires_grad_(False)


@dataclass(frozen=True)
class Exact(Objective):
    """``J_fᵀ (w J_f J_fᵀ + λ I)⁻¹`` at the forward activation, by the layer's own JVP and VJP.

    It reads the forward weights, so it is a reference and a fallback, not a local learning rule.

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
        """Check the settings.

        Raises:
            ValueError: a setting is out of its range.
        """
        super().__post_init__()
        if self.w < 0 or self.damping < 0 or self.w == self.damping == 0:
            raise ValueError(f"decoder w and damping must be ≥ 0, and not both 0; got {self.w} and {self.damping}")
        if self.max_steps < 1:
            raise ValueError(f"decoder max_steps must be ≥ 1; got {self.max_steps}")

    def build(self, chain: Chain, example: Record, inner: Inner, custom: Mapping[str, nn.Module]) -> Bank:
        """Build linearised decoders; see `Objective.build`."""
        make = lambda: LinearisedDecoder(self.w, self.damping, self.max_steps)  # noqa: E731
        return build_layer_bank(chain, example, inner, make, custom)


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

    def build(self, chain: Chain, example: Record, inner: Inner, custom: Mapping[str, nn.Module]) -> Bank:
        """Build affine decoders with their running moments; see `Objective.build`.

        Args:
            chain: the layers.
            example: a forward pass on a few samples.
            inner: outputs of the modules inside each layer in that pass.
            custom: the user's own decoders by layer name; they are left as they are.

        Returns:
            The bank.

        Raises:
            ValueError: a layer's decoder is not one affine map.
        """
        check_digits((p for layer in chain.layers for p in layer.parameters()), "ridge regression")
        bank = build_layer_bank(chain, example, inner, "identity", custom).requires_grad_(False)
        for index, name in enumerate(chain.names[1:], start=1):
            linear = bank.single_linear(index)
            if name in custom:
                continue
            if linear is None:
                raise ValueError(
                    f"ridge regression needs a decoder that is one affine map, and layer {name} has another kind;"
                    " choose a different decoder objective"
                )
            bank.moments[str(index)] = _Moments(linear, self.decay, self.damping, self.every)
        return bank

    def train(
        self,
        bank: Bank,
        record: Record,
        optimizer: torch.optim.Optimizer | None,
        generator: torch.Generator,
        guard: Guard,
    ) -> Tensor | None:
        """Update the moments and, every few batches, the decoders; see `Objective.train`."""
        assert isinstance(bank, LayerBank)
        noise = Noise(record, self.noise, generator)
        losses, pairs = [], []
        with torch.no_grad():
            for index in map(int, bank.moments):
                layer = record.layers[index]
                if not record.places.owns(index):
                    guard.watch(failed_decoder(layer, "loss"))
                    continue
                clean, seen = layer.x + noise.like(layer.x), perturbed(layer, noise.like(layer.x))
                losses.append(record.share.mean((bank.inverse(index, record)(seen) - clean).square().flatten(1).sum(1)))
                guard.watch(failed_decoder(layer, "loss"), losses[-1], clean, seen)
                pairs.append((index, seen, clean))
            if not guard.passes():
                return None
            for index, seen, clean in pairs:
                linear, moments = bank.single_linear(index), bank.moments[str(index)]
                assert isinstance(moments, _Moments) and linear is not None
                moments.fit(linear, seen, clean, record.share)
        if not bank.moments:
            return None
        return record.places.total(torch.stack(losses).sum() if losses else record.output.new_zeros(()))


class _Moments(nn.Module):
    """Running moments of one decoder's input ``a = (y, 1)`` and output."""

    cross: Tensor

    def __init__(self, linear: LinearDecoder, decay: float, damping: float, every: int) -> None:
        super().__init__()
        weight = linear.map.weight
        self.inputs = Covariance(weight.shape[1] + 1, decay, damping, every).to(weight)
        self.register_buffer("cross", weight.new_zeros(weight.shape[0], weight.shape[1] + 1))

    def fit(self, linear: LinearDecoder, seen: Tensor, clean: Tensor, share: Share) -> None:
        rows = share.times(seen.shape[1:].numel() // linear.map.in_features)
        seen, clean = seen.reshape(-1, linear.map.in_features), clean.reshape(-1, linear.map.out_features)
        a = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1).to(self.cross.dtype)
        if not squares_are_finite([a, clean.to(a.dtype)], share.ranks):
            raise FloatingPointError("a regression on activations overflows; scale the inputs down")
        self.inputs.observe(a, rows)
        rows.add_product_(self.cross, clean.to(a.dtype), a, self.inputs.decay)
        if (int(self.inputs.count) - 1) % self.inputs.every == 0:
            solution = self.inputs.solve(self.cross / (1 - self.inputs.decay ** int(self.inputs.count)))
            linear.map.weight.copy_(solution[:, :-1])
            linear.map.bias.copy_(solution[:, -1])
