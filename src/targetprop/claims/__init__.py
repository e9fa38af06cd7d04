"""The claims of Bengio 2020 (arXiv:2007.15139), measured: one file and one public function per claim.

Each function takes a seed and returns a `Claim`; ``targetprop verify`` runs them all.
"""

from targetprop.claims.claim import Claim, Number, Table, merge

__all__ = ["Claim", "Number", "Table", "merge"]
