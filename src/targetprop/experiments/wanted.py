"""The optimiser and the schedule of methods whose ``.grad`` is a step already, to which Adam's scaling is no help.

>>> wanted("kronecker", "kronecker")["optimizer"]
Sgd(lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0)
>>> wanted("l-drl", "gradient")
{}
"""

from typing import Any

from targetprop.experiments.optimizers import Optimizer, Sgd
from targetprop.experiments.schedules import Linear

_OF_RULES: dict[str, Optimizer] = {"least-squares": Sgd(lr=0.25, momentum=0.5), "kronecker": Sgd(lr=1.0, momentum=0.0)}
_OF_METHODS: dict[str, Optimizer] = {"gauss-newton": Sgd(lr=0.1, momentum=0.5)}


def wanted(method: str, rule: str) -> dict[str, Any]:
    """Look up what stands in for Adam at a constant rate, as docs/optimiser.md and docs/methods.md measured it.

    Args:
        method: the method's name.
        rule: name of its update.

    Returns:
        The sections ``optimizer`` and ``schedule``; empty where the usual ones are right.
    """
    if rule not in _OF_RULES:
        return {}
    return {"optimizer": _OF_METHODS.get(method, _OF_RULES[rule]), "schedule": Linear(warmup=0.05)}
