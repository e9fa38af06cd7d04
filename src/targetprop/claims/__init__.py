"""The claims of Bengio 2020 (arXiv:2007.15139), measured: one file and one public function per claim.

Each function takes a seed and returns a `Claim`; ``targetprop verify`` runs them all.

>>> from targetprop.claims import differential
>>> claim = differential(width=6, points=21)
>>> claim.verdict
'holds'
>>> claim.measured[0].what, claim.measured[0].allowed
('slope of the error, float64', '1.95 to 2.05')
"""

from collections.abc import Callable

from targetprop.claims.bridge import bridge
from targetprop.claims.claim import Claim, Number, Table, merge
from targetprop.claims.convergence import convergence
from targetprop.claims.differential import differential
from targetprop.claims.gauss_newton import gauss_newton
from targetprop.claims.joint_sweeps import joint_sweeps
from targetprop.claims.local_learning import damped_inverses, local_learning
from targetprop.claims.normalisation import normalisation
from targetprop.claims.optimiser import optimiser

CLAIMS: dict[str, Callable[[int], Claim]] = {
    "convergence": convergence,
    "joint-sweeps": joint_sweeps,
    "gauss-newton": gauss_newton,
    "differential": differential,
    "normalisation": normalisation,
    "bridge": bridge,
    "local-learning": local_learning,
    "damped-inverses": damped_inverses,
    "optimiser": optimiser,
}

__all__ = [
    "CLAIMS",
    "Claim",
    "Number",
    "Table",
    "bridge",
    "convergence",
    "damped_inverses",
    "differential",
    "gauss_newton",
    "joint_sweeps",
    "local_learning",
    "merge",
    "normalisation",
    "optimiser",
]
