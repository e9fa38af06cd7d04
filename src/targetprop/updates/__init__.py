"""Local updates: from ``Δ_l`` to ``.grad`` of ``θ_l``."""

from targetprop.updates.asked import Common, Regression
from targetprop.updates.base import Update, state_key
from targetprop.updates.delta_rule import DeltaRule
from targetprop.updates.gradient import Gradient
from targetprop.updates.kronecker import Kronecker
from targetprop.updates.least_squares import LeastSquares
from targetprop.updates.linear import LinearUpdate
from targetprop.updates.local_gradients import LayerChange, LocalGradients, from_top

UPDATES: dict[str, type[Update]] = {update.name: update for update in (Gradient, DeltaRule, LeastSquares, Kronecker)}

__all__ = [
    "UPDATES",
    "Common",
    "DeltaRule",
    "Gradient",
    "Kronecker",
    "LayerChange",
    "LeastSquares",
    "LinearUpdate",
    "LocalGradients",
    "Regression",
    "Update",
    "from_top",
    "state_key",
]
