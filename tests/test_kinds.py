"""Right or refused: for drawn models, losses and surroundings, the gradient of back-propagation or a sentence.

The cases are drawn at random, and are the same in every run.
"""

import warnings

import pytest
from hypothesis import HealthCheck, given, settings

from kinds import KINDS

FIXED = settings(
    derandomize=True, deadline=None, database=None, max_examples=8, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("name", KINDS)
def test_kind(name):
    strategy, check = KINDS[name]

    @FIXED
    @given(strategy)
    def run(case):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*deprecated.*|Anomaly Detection|None of the inputs have requires_grad")
            check(*case)

    run()
