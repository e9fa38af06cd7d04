"""The benchmark of accuracies: it tunes on held-out samples, and says what it ran."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import targetprop as tp
from accuracy import __main__ as command
from accuracy.runs import Run, train
from accuracy.tasks import TASKS, load, prepare


def test_held_out_samples_are_not_trained_on() -> None:
    whole, held = load("digits", ""), prepare(TASKS["digits"], "", held_out=True, limit=None)
    assert len(held.train_x) + len(held.test_x) == len(whole.train_x)
    rows = {tuple(x.flatten().tolist()) for x in whole.train_x}
    assert {tuple(x.flatten().tolist()) for x in (*held.train_x, *held.test_x)} == rows
    assert not {tuple(x.flatten().tolist()) for x in held.test_x} & {tuple(x.flatten().tolist()) for x in held.train_x}


def test_a_run_learns_and_repeats_itself() -> None:
    run = Run("digits", "l-drl", tp.method("l-drl"), lr=3e-3)
    first, again = (train(run, "", 512, 3) for _ in range(2))
    assert first["losses"] == again["losses"] and first["losses"][-1] < 0.5 * first["losses"][0]
    assert 50 < first["accuracy"] <= 100 and first["method"][0] == "l-drl"
    torch.set_num_threads(1)


def test_a_run_that_diverges_says_so() -> None:
    found = train(Run("digits", "sgd", tp.method("backprop"), "sgd", 1e30, seed=1), "", 128, 2)
    assert "NaN or infinite" in found["diverged"]


def test_the_table_has_every_method_with_every_seed() -> None:
    runs = list(command.table(["digits", "deep"], 2))
    names = {(run.task, run.label, run.seed) for run in runs}
    assert len(names) == len(runs)
    assert {("digits", name, seed) for name in command.METHODS for seed in (0, 1)} <= names
    assert {(run.lr, run.seed) for run in runs if run.label.startswith("backprop, rate")} == {
        (rate, seed) for rate in command.RATES for seed in (0, 1)
    }


def test_every_side_has_as_many_trials() -> None:
    for task in command.GRID:
        labels = [run.label for run in command.trials([task])]
        assert len({labels.count(label) for label in labels}) == 1
    assert all(run.held_out for run in command.trials(list(command.GRID)))


def test_what_a_result_file_holds_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Run] = []

    def pretend(runs: list[Run], *_: object) -> None:
        made.extend(runs)
        for run in runs:
            _[-1](run.described() | {"losses": [1.0], "accuracy": 1.0, "seconds_per_step": 1.0})  # pyright: ignore

    monkeypatch.setattr(command, "train_all", pretend)
    out, line = tmp_path / "found.json", ["table", "--tasks", "digits", "--out"]
    monkeypatch.setattr(sys, "argv", ["accuracy", *line, str(out), "--seeds", "1"])
    command.main()
    first = json.loads(out.read_text())["runs"]
    assert len(first) == len(made) == len(list(command.table(["digits"], 1)))
    monkeypatch.setattr(sys, "argv", ["accuracy", *line, str(out), "--seeds", "2"])
    command.main()
    assert {run.seed for run in made[len(first) :]} == {1}
    assert len(json.loads(out.read_text())["runs"]) == 2 * len(first) == len(made)


@pytest.mark.parametrize("name", ["accuracy", "tuned"])
def test_what_is_recorded_is_what_the_docs_show(name: str) -> None:
    root = Path(__file__).parents[1]
    record = json.loads((root / "benchmarks" / "results" / f"{name}.json").read_text())
    page = (root / "docs" / "methods.md").read_text()
    if name == "accuracy":
        for task in ("digits", "mnist"):
            for label in ("backprop", "l-drl", "iterated", "krylov", "autoencoder"):
                runs = [run for run in record["runs"] if (run["task"], run["label"]) == (task, label)]
                assert ", ".join(f"{run['accuracy']:.2f}" for run in sorted(runs, key=lambda run: run["seed"])) in page
    else:
        for label in ("Adam", "gauss-newton", "least-squares"):
            best = max((run for run in record["trials"] if run["label"] == label), key=lambda run: run["accuracy"])
            assert f"{best['accuracy']:.2f} %" in page
