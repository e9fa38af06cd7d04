"""Slow, obvious reference implementations: what the fast code is tested against; the engine imports none of it."""

from targetprop.diagnostics.contraction import affine_error, contraction, lipschitz, visited
from targetprop.diagnostics.dense import backprop_gradients, damped_inverse, gauss_newton_steps
from targetprop.diagnostics.dense_inverse import DenseInverse, layer_jacobian, linear_inverse
from targetprop.diagnostics.jacobians import activations, layer_jacobians, output_jacobians, parameter_jacobians
from targetprop.diagnostics.spectral import spectral_norm

__all__ = [
    "DenseInverse",
    "activations",
    "affine_error",
    "backprop_gradients",
    "contraction",
    "damped_inverse",
    "gauss_newton_steps",
    "layer_jacobian",
    "layer_jacobians",
    "linear_inverse",
    "lipschitz",
    "output_jacobians",
    "parameter_jacobians",
    "spectral_norm",
    "visited",
]
