"""Checkpoints: resuming is bit for bit, a crash at any point loses nothing, and damage is noticed."""

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from runs import metrics, train
from targetprop.experiments import recorder
from targetprop.experiments.progress import TrainingProgress
from targetprop.runs import atomic, checkpoint
from targetprop.runs.atomic import write_atomic
from targetprop.runs.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint

SMALL = "--network.widths 12 12 --batch_size 256 --log_every 4 --device cpu".split()


def values(run: Path) -> dict:
    state = load_checkpoint(run)
    del state["metrics"], state["counters"]["seconds"], state["counters"]["last"]["seconds"]
    return state


def same_run(first: Path, second: Path) -> None:
    one, two = (load_file(run / "checkpoint.safetensors") for run in (first, second))
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert str(values(first)) == str(values(second))
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


RECIPES = [
    "--method krylov",
    "--method l-drl --optimizer.name sgd",
    "--method backprop --optimizer.name rmsprop",
    "--method krylov --update.rule least-squares --optimizer.name adamw --schedule.name constant",
    "--method drl --decoder.optimizer sgd",
    "--method dtp --decoder.objective ridge",
    "--method ddtp-linear",
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_resuming_is_bit_for_bit(tmp_path, recipe):
    arguments = [*recipe.split(), *SMALL, "--batch_size", 512]
    assert train(*arguments, "--epochs", 3, "--out", tmp_path / "whole") == 0
    assert train(*arguments, "--epochs", 1, "--out", tmp_path / "parts") == 0
    assert train("--resume", tmp_path / "parts", "--epochs", 3) == 0
    same_run(tmp_path / "whole", tmp_path / "parts")


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> None:
    """Let a signal arrive in the middle of a step."""
    steps, plain = [], TrainingProgress.on_step

    def on_step(self, record):
        steps.append(record)
        if len(steps) == step:
            signal.raise_signal(number)
        plain(self, record)

    monkeypatch.setattr(TrainingProgress, "on_step", on_step)


@pytest.mark.parametrize("recipe", [*RECIPES, "--method backprop --data.crop 1 --data.flip true"])
@pytest.mark.parametrize("step", [9])
def test_stopping_within_an_epoch_is_bit_for_bit(tmp_path, monkeypatch, recipe, step):
    arguments = [*recipe.split(), *SMALL, "--epochs", 2]
    assert train(*arguments, "--out", tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        assert train(*arguments, "--out", tmp_path / "parts") == 143
    assert load_checkpoint(tmp_path / "parts")["epoch_progress"]["batches"] == step - 6
    assert train("--resume", tmp_path / "parts") == 0
    same_run(tmp_path / "whole", tmp_path / "parts")


def test_checkpoints_by_the_clock_change_nothing(tmp_path, monkeypatch):
    saved, plain = [], recorder.save_checkpoint
    monkeypatch.setattr(recorder, "save_checkpoint", lambda *a: (saved.append(a[1]["counters"]["step"]), plain(*a)))
    for name, minutes in (("seldom", "inf"), ("always", 0)):
        assert train(*SMALL, "--epochs", 2, "--checkpoint_minutes", minutes, "--out", tmp_path / name) == 0
    assert saved == [6, 12, *range(1, 7), 6, *range(7, 13), 12]
    for name in ("seldom", "always"):
        (tmp_path / name / "config.yaml").write_text("")
    one, two = (load_checkpoint(tmp_path / name) for name in ("seldom", "always"))
    assert str(one["model"]) == str(two["model"]) and metrics(tmp_path / "seldom") == metrics(tmp_path / "always")


def train_and_interrupt(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin three epochs of six steps, and press Ctrl-C in the middle of the third."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored
    try:
        with monkeypatch.context() as patch:
            stop_after(2 * 6 + 4, patch, signal.SIGINT)
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
    assert (summary["steps"], summary["checkpoint_step"]) == (16, 16)
    assert metrics(run)[-1]["epoch"] == 3, "the third epoch had begun"
    assert f"targetprop train --resume {run}" in capsys.readouterr().err
    with (run / "metrics.jsonl").open("a") as file:  # as if it had been killed after two more measurements
        file.write('{"kind": "step", "epoch": 3, "step": 17}\n{"kind": "st')
    assert train("--resume", run) == 0
    assert train(*SMALL, "--epochs", 3, "--out", tmp_path / "whole") == 0
    same_run(tmp_path / "whole", run)


def _flip(run: Path, place: int | bytes) -> None:
    """Change a bit: of the tensors, of a value in the metadata, or of the digest."""
    path = run / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[place if isinstance(place, int) else content.index(place) + len(place)] ^= 1
    path.write_bytes(content)


def _other_version(run: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "VERSION", 99)
        save_checkpoint(run, {})


def _other_network(run: Path) -> None:
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("[12, 12]", "[12, 13]"))


def _other_rate(run: Path) -> None:
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.001", "lr: 0.01"))


def _other_metrics(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_text(path.read_text().replace('"loss": 2', '"loss": 1', 1))


CHECKSUM = "checkpoint.safetensors is damaged (its checksum is another one)"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: _flip(run, -1), CHECKSUM),
        (lambda run: _flip(run, b'lr\\": 0.'), CHECKSUM),
        (lambda run: _flip(run, b'"sha256":"'), CHECKSUM),
        (lambda run: os.truncate(run / "checkpoint.safetensors", 200), CHECKSUM),
        (lambda run: (run / "checkpoint.safetensors").write_bytes(b""), CHECKSUM),
        (_other_version, "has version 99 and this release reads 1; resume with targetprop 0.1.0, which wrote it"),
        (_other_network, "config.yaml, which has network.widths [12, 13] where it was [12, 12]; put that back"),
        (_other_rate, "config.yaml, which has optimizer.lr 0.01 where it was 0.001; put that back"),
        (_other_metrics, "metrics.jsonl is damaged (its first"),
        (lambda run: (run / "checkpoint.safetensors").unlink(), "checkpoint.safetensors cannot be read"),
        (lambda run: (run / "config.yaml").unlink(), "is not a run folder"),
        (lambda run: (run / "config.yaml").write_text("a: ["), "config.yaml is not valid YAML"),
        (lambda run: (run / "metrics.jsonl").write_text("{\n{}\n"), "metrics.jsonl is damaged"),
        (lambda run: (run / "config.yaml").write_text("method: xyz"), "config.yaml cannot be used (unknown method"),
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


def test_a_run_without_its_metrics_goes_on_and_says_so(run, tmp_path, capsys):
    (run / "metrics.jsonl").unlink()
    assert train("--resume", run) == 0
    assert "has lost its metrics, so its curves begin after step 16" in capsys.readouterr().err
    assert [record["step"] for record in metrics(run)] == [18]


def test_loading_a_checkpoint_runs_no_code(run):
    load_checkpoint(run)  # imports what it needs
    events = []
    sys.addaudithook(lambda event, _: events.append(event) if events is not None else None)
    try:
        load_checkpoint(run)
        seen = set(events)
    finally:
        events = None
    assert "open" in seen and not seen & {"exec", "compile", "import", "marshal.loads", "pickle.find_class"}


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
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors"]


def test_objects_are_not_saved(tmp_path):
    with pytest.raises(TypeError, match="plain values; a/b is a complex"):
        save_checkpoint(tmp_path, {"a": {"b": 1j}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_crash_at_any_point_of_saving_keeps_one_whole_checkpoint(tmp_path, monkeypatch, call):
    def crash(*_):
        raise KeyboardInterrupt

    for epoch in (0, 1):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(atomic.os, call, crash)
            save_checkpoint(tmp_path, {"epoch": 2, "x": torch.ones(2)})
        assert has_checkpoint(tmp_path) == (epoch == 1)
        save_checkpoint(tmp_path, {"epoch": 1, "x": torch.zeros(2)})
        assert str(load_checkpoint(tmp_path)) == str({"epoch": 1, "x": torch.zeros(2)})


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, b"new")
    assert hashes(tmp_path) == {"file": hashlib.sha256(b"old").hexdigest()}


def test_failed_append_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic.append(path, b"old\n")
    plain, writes = os.write, []

    def fill(file, content):
        writes.append(content)
        if len(writes) == 2:
            raise OSError("no space left on device")
        return plain(file, content[:2])

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "write", fill)
        with pytest.raises(OSError, match="no space"):
            atomic.append(path, b"new\n")
    assert path.read_bytes() == b"old\n"


def test_a_write_that_takes_only_a_part_goes_on(tmp_path, monkeypatch):
    plain = os.write
    monkeypatch.setattr(atomic.os, "write", lambda file, content: plain(file, content[:3]))
    write_atomic(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"
