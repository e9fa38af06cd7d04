"""Approximate inverses: a registry by module class, one file per layer family, their objectives and training."""

from torch import nn

from targetprop.decoders import activation, conv, group_norm, linear, norm, pool, residual, shape  # noqa: F401 — fills the registry
from targetprop.decoders.bank import Bank, DirectBank, LayerBank
from targetprop.decoders.denoising import Denoising
from targetprop.decoders.difference_reconstruction import DifferenceReconstruction, difference_loss
from targetprop.decoders.global_reconstruction import DirectFeedback, GlobalReconstruction
from targetprop.decoders.layer import Inverse, LayerDecoder
from targetprop.decoders.linearised import LinearisedDecoder
from targetprop.decoders.mirror import WeightMirror
from targetprop.decoders.mirror_bank import MirrorBank
from targetprop.decoders.objective import Learned, Objective, OptimizerFactory
from targetprop.decoders.probes import unfold
from targetprop.decoders.pullback import pulled_back, register_pullback
from targetprop.decoders.registry import ModuleDecoder, Style, find_builder, register_decoder
from targetprop.decoders.residual import IdentityDecoder
from targetprop.decoders.untrained import Exact, Fixed, NoDecoder, Ridge

# What a target can be carried through value by value.
ELEMENTWISE = (*activation.ELEMENTWISE, nn.Identity, nn.Dropout, nn.Flatten, nn.Unflatten)

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (
        DifferenceReconstruction, WeightMirror, Denoising, GlobalReconstruction, DirectFeedback, Fixed, Exact, Ridge,
        NoDecoder,
    )
}  # fmt: skip

__all__ = [
    "ELEMENTWISE",
    "OBJECTIVES",
    "Bank",
    "Denoising",
    "DifferenceReconstruction",
    "DirectBank",
    "DirectFeedback",
    "Exact",
    "Fixed",
    "GlobalReconstruction",
    "IdentityDecoder",
    "Inverse",
    "LayerBank",
    "LayerDecoder",
    "Learned",
    "LinearisedDecoder",
    "MirrorBank",
    "ModuleDecoder",
    "NoDecoder",
    "Objective",
    "OptimizerFactory",
    "Ridge",
    "Style",
    "WeightMirror",
    "difference_loss",
    "find_builder",
    "pulled_back",
    "register_decoder",
    "register_pullback",
    "unfold",
]
