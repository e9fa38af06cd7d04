"""One figure per claim; each function takes the claim's record and returns a ``matplotlib`` figure."""

from collections.abc import Callable

from matplotlib.figure import Figure

from targetprop.claims.claim import Claim
from targetprop.claims.figures import (
    bridge,
    convergence,
    differential,
    gauss_newton,
    joint_sweeps,
    local_learning,
    normalisation,
    optimiser,
)

FIGURES: dict[str, Callable[[Claim], Figure]] = {
    "convergence": convergence.draw,
    "joint-sweeps": joint_sweeps.draw,
    "gauss-newton": gauss_newton.draw,
    "differential": differential.draw,
    "normalisation": normalisation.draw,
    "bridge": bridge.draw,
    "local-learning": local_learning.draw,
    "damped-inverses": local_learning.draw,
    "optimiser": optimiser.draw,
}
