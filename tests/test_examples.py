"""The examples run as they stand; each asserts what it shows."""

import json
import runpy
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

ROOT = Path(__file__).parents[1]
METHODS = {"l-drl", "dtp", "backprop"}


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


@pytest.mark.pictures
def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    path = ROOT / "examples" / "first_network.ipynb"
    assert path.stat().st_size < 100_000, "its outputs are to stay small"
    notebook, names = json.loads(path.read_text()), {"__name__": "__main__"}
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), names)
    plt.close("all")
    assert all(accuracy > 0.85 for _, _, accuracy in names["runs"].values()) and names["runs"].keys() == METHODS
    assert "status         finished" in capsys.readouterr().out
    assert (tmp_path / "runs" / "iterated-digits-s0" / "curves.png").exists()
