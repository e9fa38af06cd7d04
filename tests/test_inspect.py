"""``targetprop inspect``: what it prints and writes for a run, and what it refuses."""

import hashlib
import json
import re
import shutil
from contextlib import redirect_stdout
from html import escape
from io import StringIO
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from targetprop.experiments import inspect as inspect_module
from targetprop.experiments import recorder
from targetprop.experiments.data import Digits
from targetprop.experiments.main import main
from targetprop.report.inspection import draw_inspection

SMALL = "--network.widths 12 10 --batch_size 256 --log_every 4 --device cpu --epochs 1".split()
PANELS = [
    "norm of one step\n(id − α f∘g, or g∘f)",
    "residual\n‖t − f(x)‖ / ‖t − y₀‖",
    "samples (%)",
    "angle (degrees)",
    "influence\n‖Δ_L‖ / ‖Δ_l‖",
]


def train(out: Path, *arguments: object) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(recorder, "draw_curves", lambda path: path)
        assert main(["train", *SMALL, *map(str, arguments), "--out", str(out)]) == 0
    return out


def inspect(*arguments: object) -> int:
    return main(["inspect", *map(str, arguments)])


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="module")
def inspected(trained, tmp_path_factory) -> tuple[Path, str]:
    """A run with its inspection, and what was printed."""
    run, printed = shutil.copytree(trained, tmp_path_factory.mktemp("inspected") / "run"), StringIO()
    with redirect_stdout(printed):
        assert inspect(run) == 0
    return run, printed.getvalue()


def test_a_run_is_inspected(trained, inspected):
    run, output = inspected
    before, after = hashes(trained), hashes(run)
    assert {name: after[name] for name in before} == before, "nothing of the run itself is changed"
    assert after.keys() - before.keys() == {"inspection.html", "inspection.json", "inspection.png"}
    record = json.loads((run / "inspection.json").read_text())
    assert (record["method"], record["data"], record["seed"], record["epoch"]) == ("l-drl", "digits", 0, 1)
    assert record["samples"] == 64 and record["inversion"]["rule"] == "difference"
    assert [(layer["name"], layer["width"]) for layer in record["layers"]] == [("1", 12), ("3", 10), ("5", 10)]
    assert record["layers"][0]["inverse"] is None and record["layers"][1]["inverse"]["kind"] == "mirrored"
    assert all(0 <= layer["angle_backprop"] <= 180 for layer in record["layers"])
    lines = output.splitlines()
    assert all(len(line) <= 120 for line in lines)
    assert lines[0].startswith("l-drl on digits, seed 0, after epoch 1; 64 test samples, loss ")
    assert lines[1] == "targets: layerwise, difference"
    (row,) = (line.split() for line in lines if line.startswith("3 "))
    inverse = record["layers"][1]["inverse"]
    assert row[:4] == ["3", "10", "mirrored", "f∘g"] and row[4] == f"{inverse['contraction']:.3f}"
    assert row[7] == f"{inverse['residual']:.3f}" and row[-1] == f"{record['layers'][1]['angle_gradient']:.0f}"
    for layer in record["layers"]:
        assert layer["advice"] in " ".join(output.split())
    assert f"figure: {run / 'inspection.png'}\npage: {run / 'inspection.html'}" in output
    page = (run / "inspection.html").read_text()
    assert page.count("<svg") == page.count('role="img" aria-label="Measured layer by layer: Where') == 1
    assert all(f"<li>{escape(layer['advice'])}</li>" in page for layer in record["layers"])


def test_inspecting_twice_gives_the_same(run, inspected):
    assert inspect(run, "--device", "cpu") == 0
    assert (run / "inspection.json").read_bytes() == (inspected[0] / "inspection.json").read_bytes()


@pytest.mark.parametrize(
    ("rule", "kind", "panels"),
    [
        ("difference", "mirrored", PANELS[3:]),  # transposes invert nothing, and take no steps
        ("difference", "learned", [PANELS[1], *PANELS[3:]]),
        ("krylov", "mirrored", PANELS[1:]),
    ],
)
def test_the_figure_shows_what_says_something_about_the_method(inspected, tmp_path, rule, kind, panels):
    record = json.loads((inspected[0] / "inspection.json").read_text())
    layers = [layer | {"inverse": layer["inverse"] and layer["inverse"] | {"kind": kind}} for layer in record["layers"]]
    (tmp_path / "inspection.json").write_text(json.dumps(record | {"inversion": {"rule": rule}, "layers": layers}))
    assert [axes.get_ylabel() for axes in draw_inspection(tmp_path).axes] == panels


def test_the_figure_is_drawn_from_the_record_alone(inspected, tmp_path):
    run, record = tmp_path, json.loads((inspected[0] / "inspection.json").read_text())
    iterated = json.dumps(record | {"inversion": {"rule": "input-space"}})
    (run / "inspection.json").write_text(iterated)
    figure = draw_inspection(run)
    assert [axes.get_ylabel() for axes in figure.axes] == PANELS
    assert all(axes.get_xlabel() and axes.get_title(loc="left") for axes in figure.axes)
    assert [[text.get_text() for text in axes.get_xticklabels()] for axes in figure.axes] == [["1", "3", "5"]] * 5
    (median,) = (line for line in figure.axes[0].lines if line.get_label() == "median")
    assert list(median.get_ydata()) == [layer["inverse"]["contraction"] for layer in record["layers"][1:]]
    (bound,) = (line for line in figure.axes[0].lines if line.get_label() == "converges below 1")
    assert list(bound.get_ydata()) == [1, 1] and bound.get_linestyle() == "--"
    assert {text.get_rotation() for text in figure.axes[0].get_xticklabels()} == {0}
    assert imread(inspected[0] / "inspection.png").shape[1] == 728
    (run / "inspection.json").write_text(json.dumps(json.loads(iterated) | {"layers": 5 * record["layers"]}))
    crowd = draw_inspection(run).axes[0].get_xticklabels()
    assert len(crowd) == 15 and {text.get_rotation() for text in crowd} == {90}


@pytest.mark.parametrize(
    "recipe",
    [
        "--method ddtp-linear",
        "--method regularised",
        "--method dtp --network.widths 8 12 --network.activation relu",
        pytest.param(
            "--propagation joint --inversion.rule input-space --inversion.steps 4 --update.rule least-squares",
            marks=pytest.mark.pictures,
        ),
    ],
)
def test_other_recipes_are_inspected(tmp_path, recipe, capsys, short_trials):
    run = train(tmp_path / "run", *recipe.split())
    assert inspect(run, "--samples", 4) == 0
    record = json.loads((run / "inspection.json").read_text())
    sentences = " ".join(capsys.readouterr().out.split())
    assert all(layer["advice"] in sentences for layer in record["layers"])
    assert (run / "inspection.png").exists()


def test_a_run_that_inverts_badly_is_told_so(tmp_path, capsys):
    steep = "--method learned-inverse --decoder.objective exact --decoder.w 0 --decoder.damping 0.01".split()
    run = train(tmp_path / "run", *steep)
    assert inspect(run) == 0
    output = " ".join(capsys.readouterr().out.split())
    remedy = r"set inversion\.rule to difference, since transposes are no inverses to iterate"
    assert re.search(
        rf"layer 5: f∘g − id has norm [\d.]+ > 1 and iterating diverges for \d+% of the samples: {remedy}", output
    )


def test_samples_are_spread_over_the_test_set(run, monkeypatch, capsys):
    seen = []

    def keep(engine, x, y, on_layer):
        seen.extend((x, y))
        raise ValueError("enough")

    monkeypatch.setattr(inspect_module, "inspect_targets", keep)
    assert inspect(run, "--samples", 3) == 2 and capsys.readouterr().err == "targetprop: enough\n"
    data = Digits().load()
    assert torch.equal(seen[0], data.test_x[[0, 119, 239]]) and torch.equal(seen[1], data.test_y[[0, 119, 239]])


def test_more_samples_than_there_are_takes_all(run):
    assert inspect(run, "--samples=100000") == 0
    assert json.loads((run / "inspection.json").read_text())["samples"] == 359


def test_what_takes_long_is_said_on_the_error_stream(run, monkeypatch, capsys, short_trials):
    assert inspect(run, "--samples", 4) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(inspect_module, "_PATIENCE", -1.0)
    assert inspect(run, "--samples", 4) == 0
    assert capsys.readouterr().err == "measuring layer 2 of 3\nmeasuring layer 3 of 3\n"


def test_help(capsys):
    assert inspect("--help") == 0
    output = capsys.readouterr().out
    assert output.startswith("usage: targetprop inspect RUN") and "--samples N" in output
    assert main(["--help"]) == 0 and "inspect" in capsys.readouterr().out


REFUSED = {
    "": "targetprop inspect RUN needs the folder of a run",
    "--samples 3": "targetprop inspect RUN needs the folder of a run",
    "nowhere": "targetprop inspect nowhere is not a run folder, it has no config.yaml; give the folder of a run",
    "run --samples 0": "--samples must be a whole number ≥ 1; got 0",
    "run --samples many": "--samples must be a whole number; got 'many'",
    "run --sample 3": "targetprop inspect has no option --sample; did you mean --samples?",
    "run --print_config": "targetprop inspect has no option --print_config",
    "run --device tpu": "--device must be one of auto, cpu, cuda; got 'tpu'",
    "run other": "unexpected 'other'; options begin with --, see targetprop inspect --help",
    "begun": "begun has no checkpoint yet; wait for the end of its first epoch, or train again",
    "backprop": "method 'backprop' has no inverses to inspect; train with one that has, targetprop methods lists them",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_refusals_are_one_sentence(run, tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    if arguments == "begun":
        Path("begun").mkdir()
        shutil.copy(run / "config.yaml", "begun")
    if arguments == "backprop":
        train(Path("backprop"), "--method", "backprop")
    capsys.readouterr()
    assert inspect(*arguments.split()) == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"targetprop: {REFUSED[arguments]}") and output.err.count("\n") == 1
    assert output.out == "" and not list(tmp_path.rglob("inspection.*"))


def test_a_damaged_checkpoint_is_named(run, capsys):
    (run / "checkpoint.safetensors").write_bytes(b"nothing")
    assert inspect(run) == 1
    assert "is damaged (its checksum is another one)" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to_is_named(run, capsys):
    (run / "inspection.json.new").mkdir()
    assert inspect(run) == 1
    error = capsys.readouterr().err
    assert f"the results cannot be written into {run}" in error and "Traceback" not in error
