"""Inversion of one layer, or of several: one loop, one short file per rule. Sees callables and tensors only."""

from targetprop.inversion.by_sample import by_sample
from targetprop.inversion.columns import Columns
from targetprop.inversion.difference import Difference
from targetprop.inversion.direct import Direct
from targetprop.inversion.entry import invert, solve
from targetprop.inversion.input_space import InputSpace
from targetprop.inversion.krylov import Krylov
from targetprop.inversion.loop import Inversion, Iteration, iterate
from targetprop.inversion.output_space import OutputSpace
from targetprop.inversion.problem import Evaluation, Map, Outcome, Problem, Solution, Status, per_sample, sample_norm
from targetprop.inversion.regularised import Regularised

RULES: dict[str, type[Inversion]] = {
    rule.name: rule for rule in (Direct, Difference, InputSpace, OutputSpace, Krylov, Regularised)
}

__all__ = [
    "RULES",
    "Columns",
    "Difference",
    "Direct",
    "Evaluation",
    "InputSpace",
    "Inversion",
    "Iteration",
    "Krylov",
    "Map",
    "Outcome",
    "OutputSpace",
    "Problem",
    "Regularised",
    "Solution",
    "Status",
    "by_sample",
    "invert",
    "iterate",
    "per_sample",
    "sample_norm",
    "solve",
]
