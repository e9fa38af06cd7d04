"""Checkpoints: resuming is bit for bit, a crash at any point loses nothing, and damage is noticed."""

import hashlib
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from targetprop.experiments import checkpoint
from targetprop.experiments import train as train_module
from targetprop.experiments.checkpoint import load_checkpoint, save_checkpoint
from targetprop.experiments.main import main
from targetprop.experiments.screen import Screen
from targetprop.report import atomic
from targetprop.report.atomic import write_atomic

SMALL = "--network.widths 12 12 --batch_size 256 --log_every 4 --device cpu".split()


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr(train_module, "draw_curves", lambda path: path)


def train(*arguments: object) -> int:
    return main(["train", *map(str, arguments)])


def metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def values(run: Path) -> dict:
    document = json.loads((run / "checkpoint.json").read_text())
    del (
        document["sha256"],
        document["own_sha256"],
        document["state"]["metrics"],
        document["state"]["counters"]["seconds"],
        document["state"]["counters"]["last"]["seconds"],
    )
    return document


def same_run(first: Path, second: Path) -> None:
    one, two = (load_file(run / "checkpoint.safetensors") for run in (first, second))
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert values(first) == values(second)
    assert metrics(first) == metrics(second)
    assert (first / "config.yaml").read_bytes() == (second / "config.yaml").read_bytes()
    timed = ("seconds_per_step", "pid", "updated")
    summaries = [json.loads((run / "summary.json").read_text()) for run in (first, second)]
    assert len({json.dumps({k: v for k, v in s.items() if k not in timed}) for s in summaries}) == 1


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "recipe",
    [
        "--method iterated",
        "--method l-drl --optimizer.name sgd",
        "--method backprop --optimizer.name rmsprop",
        "--method iterated --update.rule least-squares --optimizer.name adamw",
        "--method drl --decoder.optimizer sgd",
        "--method dtp --decoder.objective ridge",
        "--method ddtp-linear",
    ],
)
def test_resuming_is_bit_for_bit(tmp_path, recipe):
    arguments = [*recipe.split(), *SMALL]
    assert train(*arguments, "--epochs", 4, "--out", tmp_path / "whole") == 0
    assert train(*arguments, "--epochs", 2, "--out", tmp_path / "parts") == 0
    assert train("--resume", tmp_path / "parts", "--epochs", 4) == 0
    same_run(tmp_path / "whole", tmp_path / "parts")


def train_and_interrupt(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin three epochs of six steps, and press Ctrl-C in the middle of the third."""
    steps, plain = [], Screen.on_step

    def on_step(self, record):
        steps.append(record)
        plain(self, record)
        if len(steps) == 2 * 6 + 4:
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Screen, "on_step", on_step)
            assert train(*SMALL, "--epochs", 3, "--out", run) == 130
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        train_and_interrupt(folder, monkeypatch)
    return folder


@pytest.fixture
def run(interrupted, tmp_path):
    """A copy of an interrupted run."""
    return shutil.copytree(interrupted, tmp_path / "run")


def test_interrupted_run_says_so_and_goes_on_bit_for_bit(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    train_and_interrupt(run, monkeypatch)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["reason"], summary["epochs"]) == ("interrupted", "stopped by Ctrl-C", 2)
    assert metrics(run)[-1]["epoch"] == 3, "the third epoch had begun"
    assert f"targetprop train --resume {run}" in capsys.readouterr().err
    assert train("--resume", run) == 0
    assert train(*SMALL, "--epochs", 3, "--out", tmp_path / "whole") == 0
    same_run(tmp_path / "whole", run)


def _cut(run: Path) -> None:
    path = run / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _flip(run: Path) -> None:
    path = run / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _other_version(run: Path) -> None:
    document = json.loads((run / "checkpoint.json").read_text())
    (run / "checkpoint.json").write_text(json.dumps(document | {"version": 99}))


def _other_network(run: Path) -> None:
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("[12, 12]", "[12, 13]"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "checkpoint.safetensors is damaged or does not belong"),
        (_flip, "checkpoint.safetensors is damaged or does not belong"),
        (_other_version, "has version 99 and this release reads 1 to 2; resume with targetprop 0.1.0, which wrote it"),
        (_other_network, "does not fit the run's config.yaml"),
        (lambda run: (run / "checkpoint.json").unlink(), "checkpoint.json cannot be read"),
        (lambda run: (run / "checkpoint.safetensors").unlink(), "checkpoint.safetensors cannot be read"),
        (lambda run: (run / "checkpoint.json").write_text("{"), "checkpoint.json is damaged"),
        (lambda run: (run / "checkpoint.json").write_text('{"version": 1}'), "entries are missing"),
        (lambda run: (run / "checkpoint.json").write_text("[]"), "checkpoint.json is damaged"),
        (lambda run: (run / "config.yaml").unlink(), "is not a run folder"),
        (lambda run: (run / "config.yaml").write_text("a: ["), "config.yaml is not valid YAML"),
        (lambda run: (run / "metrics.jsonl").write_text("{\n{}\n"), "metrics.jsonl is damaged"),
    ],
)
def test_damaged_checkpoint_is_refused_in_a_sentence(run, capsys, damage, message):
    damage(run)
    before = hashes(run)
    capsys.readouterr()
    assert train("--resume", run) != 0
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error
    assert hashes(run) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer.lr", "1"], "--resume keeps the run's own configuration; leave --optimizer.lr out"),
        (["--config", "x.yaml"], "leave --config out"),
        (["--epochs", "2"], "--epochs 2 is less than the 3"),
        (["--epochs", "x"], "--epochs must be a whole number"),
    ],
)
def test_what_may_stand_beside_resume(run, capsys, arguments, message):
    before = hashes(run)
    capsys.readouterr()
    assert train("--resume", run, *arguments) == 2
    assert message in capsys.readouterr().err
    assert hashes(run) == before


def test_finished_run_is_left_alone(tmp_path, capsys):
    assert train(*SMALL, "--epochs", 1, "--out", tmp_path / "run") == 0
    before = hashes(tmp_path)
    assert train("--resume", tmp_path / "run") == 2
    assert "give a larger --epochs" in capsys.readouterr().err
    assert hashes(tmp_path) == before


STATE = {
    "tensors": [torch.arange(3), {"x": torch.tensor(1.5, dtype=torch.float64)}],
    "pair": (1, torch.zeros(0, 2)),
    "numbered": {0: {"step": 2.5}, 1: None},
    "text": "ü",
    "shared": torch.ones(4, 4).T,
}


def test_nested_state_comes_back_as_it_was(tmp_path):
    save_checkpoint(tmp_path, STATE)
    loaded = load_checkpoint(tmp_path)
    assert str(loaded) == str(STATE)
    assert loaded["tensors"][1]["x"].dtype == torch.float64
    assert loaded["numbered"].keys() == {0, 1} and isinstance(loaded["pair"], tuple)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.json", "checkpoint.safetensors"]


def test_objects_are_not_saved(tmp_path):
    with pytest.raises(TypeError, match="plain values; a/b is a complex"):
        save_checkpoint(tmp_path, {"a": {"b": 1j}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("survived", range(5))
def test_a_crash_at_any_point_of_saving_keeps_one_whole_checkpoint(tmp_path, monkeypatch, survived):
    save_checkpoint(tmp_path, {"epoch": 1, "x": torch.ones(2)})
    done = []

    def crash_after(action):
        def act(*arguments):
            if len(done) == survived:
                raise KeyboardInterrupt
            done.append(action)
            return action(*arguments)

        return act

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "stage", crash_after(atomic.stage))
        patch.setattr(checkpoint, "commit", crash_after(atomic.commit))
        try:
            save_checkpoint(tmp_path, {"epoch": 2, "x": torch.zeros(2)})
        except KeyboardInterrupt:
            assert survived < 4
    loaded = load_checkpoint(tmp_path)
    assert loaded["epoch"] == (2 if survived >= 3 else 1)
    assert torch.equal(loaded["x"], torch.full((2,), float(loaded["epoch"] == 1)))


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, b"new")
    assert hashes(tmp_path) == {"file": hashlib.sha256(b"old").hexdigest()}
