"""Approximate inverses: decoders of layers, what they learn, and mirrors of weights."""

from targetprop.decoders.bank import Bank, DirectBank, LayerBank
from targetprop.decoders.denoising import Denoising
from targetprop.decoders.difference_reconstruction import DifferenceReconstruction, difference_loss
from targetprop.decoders.global_reconstruction import DirectFeedback, GlobalReconstruction
from targetprop.decoders.layer import Inverse, LayerDecoder
from targetprop.decoders.linearised import LinearisedDecoder
from targetprop.decoders.mirror import WeightMirror
from targetprop.decoders.mirror_bank import MirrorBank
from targetprop.decoders.objective import Learned, Objective, OptimizerFactory
from targetprop.decoders.registry import Style, register_decoder, registered
from targetprop.decoders.untrained import Exact, Fixed, NoDecoder, Ridge
from targetprop.decoders.weight_inverse import WeightInverse

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (
        DifferenceReconstruction, WeightMirror, WeightInverse, Denoising, GlobalReconstruction, DirectFeedback, Fixed,
        Exact, Ridge, NoDecoder,
    )
}  # fmt: skip

__all__ = [
    "OBJECTIVES",
    "Bank",
    "Denoising",
    "DifferenceReconstruction",
    "DirectBank",
    "DirectFeedback",
    "Exact",
    "Fixed",
    "GlobalReconstruction",
    "Inverse",
    "LayerBank",
    "LayerDecoder",
    "Learned",
    "LinearisedDecoder",
    "MirrorBank",
    "NoDecoder",
    "Objective",
    "OptimizerFactory",
    "Ridge",
    "Style",
    "WeightInverse",
    "WeightMirror",
    "difference_loss",
    "register_decoder",
    "registered",
]
