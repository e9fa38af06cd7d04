"""The competitors by name, with the settings that their first trial has."""

from targetprop.bench.competitors.competitor import Competitor, Range, Stepper
from targetprop.bench.competitors.gradient import Adam, Nesterov, RMSProp
from targetprop.bench.competitors.kfac import Kfac
from targetprop.bench.competitors.kfac_adaptive import AdaptiveKfac
from targetprop.bench.competitors.locoprop import LocoProp
from targetprop.bench.competitors.matrix import Muon, Shampoo, Soap
from targetprop.bench.competitors.targets import COMPOSITIONS, Kronecker, TargetProp

COMPETITORS: dict[str, Competitor] = {
    "adam": Adam(),
    "sgd": Nesterov(),
    "rmsprop": RMSProp(),
    "muon": Muon(),
    "soap": Soap(),
    "shampoo": Shampoo(),
    "k-fac": Kfac(),
    "k-fac-adaptive": AdaptiveKfac(),
    "locoprop": LocoProp(),
    "kronecker": Kronecker(),
    **{name: TargetProp(composition=name) for name in COMPOSITIONS},
}

__all__ = ["COMPETITORS", "COMPOSITIONS", "Competitor", "Range", "Stepper", "TargetProp"]
