"""Whatever the input: a finite result or a sentence, never NaN in what is learned.

The cases are drawn at random, and are the same in every run.
"""

import pytest
from hypothesis import HealthCheck, given, settings

from properties import PROPERTIES

FIXED = settings(
    derandomize=True, deadline=None, database=None, max_examples=20, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("name", PROPERTIES)
def test_property(name):
    strategy, check = PROPERTIES[name]

    @FIXED
    @given(strategy)
    def run(case):
        check(*case)

    run()
