"""The script that watches memory over thousands of steps: short here, and it must see a leak."""

import sys
from pathlib import Path

import pytest
import torch

import targetprop as tp

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
try:
    import flat_memory
finally:
    sys.path.pop(0)


@pytest.mark.parametrize("method", tp.METHODS)
def test_steps_leave_no_tensor_behind(new_objects, method: str) -> None:
    found = flat_memory.growth(method, 12, [6, 8, 8, 3], 8)
    assert found["tensors"] == 0 and found["skipped"] == 0


def test_a_leak_is_seen(new_objects, monkeypatch) -> None:
    kept, backward = [], tp.TargetPropagation.backward

    def leaking(engine, x, y, *, measure=False):
        kept.append(torch.zeros(10))
        return backward(engine, x, y, measure=measure)

    monkeypatch.setattr(tp.TargetPropagation, "backward", leaking)
    assert flat_memory.growth("dtp", 12, [6, 8, 8, 3], 8)["tensors"] == 11 * 40
