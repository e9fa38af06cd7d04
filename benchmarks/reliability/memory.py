"""Memory over 5,000 steps of every method: see `flat_memory`, which counts tensors and the pages of the process."""

from typing import Any

import targetprop as tp
from flat_memory import growth

_SLACK = 4 << 20  # bytes that the process may grow by


def measure(fast: bool) -> dict[str, Any]:
    """Take many steps of every method.

    Args:
        fast: 60 steps instead of 5,000, in which only tensors are counted.

    Returns:
        Steps, and by method the growth in bytes of tensors and of the process between a tenth of the steps and all.
    """
    steps = 60 if fast else 5000
    rows = {name: growth(name, steps, [16, 32, 32, 4], 32) for name in tp.METHODS}
    failures = [
        f"{name} grows: {row}"
        for name, row in rows.items()
        if row["tensors"] > 0 or (not fast and row["process"] > _SLACK)
    ]
    return {"steps": steps, "methods": rows, "failures": failures}
