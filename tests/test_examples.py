"""The examples run as they stand, and so does every Python block of the README; each asserts what it shows."""

import re
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


def test_readme_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert blocks, "the README shows the library at work"
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
