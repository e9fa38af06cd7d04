"""Target propagation by iterating approximate inverses, for PyTorch (Y. Bengio 2020, arXiv:2007.15139).

`TargetPropagation` replaces ``loss.backward()``; `METHODS` names the published recipes; the parts they are made of are
public, frozen settings.
"""

from targetprop.check import Check, check
from targetprop.decoders import (
    Denoising,
    DifferenceReconstruction,
    DirectFeedback,
    Exact,
    Fixed,
    GlobalReconstruction,
    NoDecoder,
    Ridge,
    WeightInverse,
    WeightMirror,
    register_decoder,
)
from targetprop.engine import TargetPropagation
from targetprop.influence import Influence, normalise
from targetprop.inversion import (
    Difference,
    Direct,
    InputSpace,
    Krylov,
    OutputSpace,
    Regularised,
    Solution,
    Status,
    invert,
)
from targetprop.layers import Residual
from targetprop.methods import METHODS, method
from targetprop.output_target import GaussNewtonStep, GradientStep, LabelTarget
from targetprop.parallel import Placement
from targetprop.recipe import Method
from targetprop.step_report import StepReport
from targetprop.updates import DeltaRule, Gradient, Kronecker, LeastSquares

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Check",
    "DeltaRule",
    "Denoising",
    "Difference",
    "DifferenceReconstruction",
    "Direct",
    "DirectFeedback",
    "Exact",
    "Fixed",
    "GaussNewtonStep",
    "GlobalReconstruction",
    "Gradient",
    "GradientStep",
    "Influence",
    "InputSpace",
    "Kronecker",
    "Krylov",
    "LabelTarget",
    "LeastSquares",
    "Method",
    "NoDecoder",
    "OutputSpace",
    "Placement",
    "Regularised",
    "Residual",
    "Ridge",
    "Solution",
    "Status",
    "StepReport",
    "TargetPropagation",
    "WeightInverse",
    "WeightMirror",
    "check",
    "invert",
    "method",
    "normalise",
    "register_decoder",
]
