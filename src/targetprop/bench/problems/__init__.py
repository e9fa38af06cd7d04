"""The problems by name."""

from targetprop.bench.problems.autoencoder import Autoencoder, DigitsAutoencoder, SmallAutoencoder
from targetprop.bench.problems.characters import Characters
from targetprop.bench.problems.lenet import Convolutions
from targetprop.bench.problems.narrow import Narrow
from targetprop.bench.problems.problem import Problem, Task
from targetprop.bench.problems.recurrent import Recurrent
from targetprop.bench.problems.regression import Regression

PROBLEMS: dict[str, type[Problem]] = {
    problem.name: problem
    for problem in (
        Autoencoder, SmallAutoencoder, DigitsAutoencoder, Narrow, Regression, Convolutions, Characters,
        Recurrent,
    )
}  # fmt: skip

__all__ = [
    "PROBLEMS", "Autoencoder", "Characters", "Convolutions", "DigitsAutoencoder", "Narrow", "Problem", "Recurrent",
    "Regression", "SmallAutoencoder", "Task",
]  # fmt: skip
