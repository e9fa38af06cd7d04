"""Slow, obvious reference implementations: what the fast code is tested against; the engine imports none of it."""

from targetprop.diagnostics.contraction import affine_error, contraction, lipschitz
from targetprop.diagnostics.dense import backprop_gradients, damped_inverse, gauss_newton_steps
from targetprop.diagnostics.jacobians import activations, layer_jacobians, output_jacobians, parameter_jacobians

__all__ = [
    "activations",
    "affine_error",
    "backprop_gradients",
    "contraction",
    "damped_inverse",
    "gauss_newton_steps",
    "layer_jacobians",
    "lipschitz",
    "output_jacobians",
    "parameter_jacobians",
]
