"""Bad and odd input: how many random networks and batches of each kind were tried, and how each ended.

The properties are those of tests/test_properties.py, on more cases; one that does not hold is counted with its message.

python benchmarks/reliability/inputs.py [--fast]
"""

import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from hypothesis import HealthCheck, given, settings  # noqa: I001
from properties import PROPERTIES


def measure(fast: bool) -> dict[str, Any]:
    """Try the properties on random cases, the same in every run.

    Args:
        fast: try 25 cases of each kind instead of 400.

    Returns:
        By kind, how many cases were tried and how they ended ("finite", "refused", "FloatingPointError", "loaded"), the
        first failures and the seconds taken; then the totals.
    """
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
        kinds = {name: _try(*PROPERTIES[name], cases=25 if fast else 400) for name in PROPERTIES}
    totals = {key: sum(kind[key] for kind in kinds.values()) for key in ("tried", "failed")}
    endings = sum((Counter(kind["endings"]) for kind in kinds.values()), Counter())
    failures = [f"{name}: {failure}" for name, kind in kinds.items() for failure in kind["failures"]]
    return {"kinds": kinds, **totals, "endings": dict(endings), "failures": failures}


def _try(strategy: Any, check: Any, cases: int) -> dict[str, Any]:
    endings, failures, start = Counter(), [], perf_counter()

    @settings(
        derandomize=True, deadline=None, database=None, max_examples=cases, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def run(case: tuple[Any, ...]) -> None:
        try:
            endings[check(*case)] += 1
        except (AssertionError, RuntimeError, ValueError, ArithmeticError) as error:
            failures.append(f"{case}: {error}")  # counted, so that the others are tried too

    run()
    tried = sum(endings.values()) + len(failures)
    return {
        "tried": tried, "endings": dict(endings), "failed": len(failures), "failures": failures[:5],
        "seconds": round(perf_counter() - start, 1),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure("--fast" in sys.argv[1:]), indent=2))
