r"""Decoders of residual blocks ``f(h) = s(h) + F(h)``: the block is inverted by its shortcut.

With the identity as shortcut, ``g = id``: nothing to learn. Where ``Lip(F) < 1``, the input-space iteration
``x ← x + t − f(x)`` inverts the block exactly, at the rate ``ρ = Lip(F)`` (Behrmann 2019, arXiv:1811.00995). With
another shortcut, ``g`` is the registered decoder of its modules, trained on the block as a whole. ``correction=True``
adds the decoders of the branch's modules, ``g(y) = s⁻¹(y) + g_F(y)`` with ``g_F = 0`` to begin with, so that the
objectives ``ℓ(w, λ)`` find the block's own Jacobian.
"""

import torch
from torch import Tensor, nn

from targetprop.decoders.layer import build_parts
from targetprop.decoders.registry import ModuleDecoder, Style, find_builder, register_decoder
from targetprop.decoders.shape import Rearrange
from targetprop.layers.chain import leaves
from targetprop.layers.replay import ReplayState, record_modules, register_replay, replay_modules
from targetprop.layers.residual import Residual


def _paths(block: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """List the modules of the shortcut and of the branch."""
    assert isinstance(block, Residual)
    shortcut, branch = ([leaf for _, leaf in leaves(path)] for path in (block.shortcut, block.branch))
    return shortcut, branch


class IdentityDecoder(Rearrange):
    """``g(y) = y``."""

    def __init__(self) -> None:
        """Set the map."""
        super().__init__(lambda values: values)


class PathDecoder(ModuleDecoder):
    """The decoders of one path's modules, last module first.

    Args:
        parts: one decoder per module of the path, in forward order.
        place: which path, 0 for the shortcut and 1 for the branch.
    """

    def __init__(self, parts: list[ModuleDecoder], place: int) -> None:
        """Keep the parts."""
        super().__init__()
        self.parts, self.place = nn.ModuleList(parts), place
        self.affine = all(part.affine for part in parts)
        self.diagonal = all(part.diagonal for part in parts)

    def forward(self, y: Tensor, state: ReplayState) -> Tensor:
        """Decode; see `ModuleDecoder.forward`."""
        for part, inner in zip(reversed(self.parts), reversed(state.inner[self.place].inner), strict=True):
            y = part(y, inner)
        return y

    def linear(self, change: Tensor, state: ReplayState) -> Tensor:
        """Apply the linear parts; see `ModuleDecoder.linear`."""
        for part, inner in zip(reversed(self.parts), reversed(state.inner[self.place].inner), strict=True):
            assert isinstance(part, ModuleDecoder)
            change = part.linear(change, inner)
        return change


class CorrectedDecoder(ModuleDecoder):
    """``g(y) = g_s(y) + g_F(y)``: the shortcut's decoder and the branch's, which starts at zero.

    Its Jacobian can become ``J_sᵀ + J_Fᵀ``, the transpose of the block's own.

    Args:
        shortcut: ``g_s``.
        branch: ``g_F``.
    """

    def __init__(self, shortcut: ModuleDecoder, branch: PathDecoder) -> None:
        """Keep both, and set to zero what is applied last in the branch."""
        super().__init__()
        self.shortcut, self.branch = shortcut, branch
        self.affine = shortcut.affine and branch.affine
        for parameter in next((list(p.parameters()) for p in branch.parts if any(True for _ in p.parameters())), []):
            nn.init.zeros_(parameter)

    def forward(self, y: Tensor, state: ReplayState) -> Tensor:
        """Decode; see `ModuleDecoder.forward`."""
        return self.shortcut(y, state) + self.branch(y, state)

    def linear(self, change: Tensor, state: ReplayState) -> Tensor:
        """Apply both linear parts; see `ModuleDecoder.linear`."""
        return self.shortcut.linear(change, state) + self.branch.linear(change, state)


def _record(block: nn.Module, x: Tensor) -> tuple[Tensor, ReplayState]:
    ends, states = [], []
    for path in _paths(block):
        outputs, inner = record_modules(path, x)
        ends.append(outputs[-1] if outputs else x)
        states.append(ReplayState(inner=inner))
    return ends[0] + ends[1], ReplayState(inner=tuple(states))


def _replay(block: nn.Module, x: Tensor, state: ReplayState) -> Tensor:
    ends = [replay_modules(path, x, inner.inner) for path, inner in zip(_paths(block), state.inner, strict=True)]
    return ends[0] + ends[1]


register_replay(Residual, _record, _replay)


def _build_path(block: nn.Module, place: int, x: Tensor, style: Style) -> PathDecoder | None:
    path = _paths(block)[place]
    with torch.no_grad():
        outputs, _ = record_modules(path, x)
    parts = build_parts(path, (x, *outputs), style)
    return None if parts is None else PathDecoder(parts, place)


@register_decoder(Residual)
def _build_residual(module: nn.Module, x: Tensor, y: Tensor, style: Style) -> nn.Module | None:
    assert isinstance(module, Residual)
    if not all(type(part) is nn.Identity for part in _paths(module)[0]):
        shortcut = _build_path(module, 0, x, style)
    else:
        shortcut = IdentityDecoder() if x.shape == y.shape else None
    if shortcut is None or not module.correction:
        return shortcut
    branch = _build_path(module, 1, x, style)
    if branch is None:
        missing = next(part for part in _paths(module)[1] if find_builder(part) is None)
        raise ValueError(
            "a Residual with correction=True needs a decoder for every module of its branch, and"
            f" {type(missing).__name__} has none; register one with targetprop.register_decoder, or leave the"
            " correction out"
        )
    return CorrectedDecoder(shortcut, branch)
