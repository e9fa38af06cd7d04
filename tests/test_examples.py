"""The examples run as they stand; each asserts what it shows."""

import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _default_dtype():
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_example_runs(path, monkeypatch):
    # An example registers decoders for its own classes; the next run must find the registry as it was.
    registry = __import__("targetprop.decoders.registry", fromlist=["_BUILDERS"])
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    runpy.run_path(str(path), run_name="__main__")
