"""Slow, obvious reference implementations, and what they measure of a network; the engine imports none of it."""

from targetprop.diagnostics.advice import advise
from targetprop.diagnostics.angles import angle
from targetprop.diagnostics.contraction import affine_error, contraction, lipschitz, visited
from targetprop.diagnostics.dense import backprop_gradients, damped_inverse, gauss_newton_steps
from targetprop.diagnostics.dense_inverse import DenseInverse, layer_jacobian, linear_inverse
from targetprop.diagnostics.inspection import Inspection, LayerInspection, inspect_targets
from targetprop.diagnostics.inverse_quality import InverseQuality
from targetprop.diagnostics.jacobians import activations, layer_jacobians, output_jacobians, parameter_jacobians
from targetprop.diagnostics.spectral import spectral_norm

__all__ = [
    "DenseInverse",
    "Inspection",
    "InverseQuality",
    "LayerInspection",
    "activations",
    "advise",
    "affine_error",
    "angle",
    "backprop_gradients",
    "contraction",
    "damped_inverse",
    "gauss_newton_steps",
    "inspect_targets",
    "layer_jacobian",
    "layer_jacobians",
    "linear_inverse",
    "lipschitz",
    "output_jacobians",
    "parameter_jacobians",
    "spectral_norm",
    "visited",
]
