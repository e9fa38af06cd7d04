"""A run's status is true: "running" only with a process behind it, and one process per run."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from targetprop.experiments.main import main
from targetprop.experiments.recorder import RunRecorder
from targetprop.experiments.signals import StopSignals
from targetprop.runs import status
from targetprop.runs.lock import hold
from targetprop.runs.status import is_held, read_status

SMALL = "--network.widths 6 --batch_size 256 --data.limit 512 --device cpu --epochs 1".split()


@pytest.fixture
def run(tmp_path) -> Path:
    assert main(["train", *SMALL, "--out", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


def rewrite(run: Path, **changes: object) -> None:
    path = run / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_words(run):
    assert read_status(run).word == "finished"
    rewrite(run, status="interrupted", reason="stopped by Ctrl-C")
    assert read_status(run) == ("interrupted", f"{run} is interrupted (stopped by Ctrl-C)", 2)
    rewrite(run, status="running", pid=os.getpid())
    assert read_status(run).word == "killed", "this process lives, but it does not train the run"
    with hold(run):
        assert read_status(run).word == "running" and is_held(run)
    assert read_status(run).word == "killed" and is_held(run) is False
    rewrite(run, host="elsewhere")
    assert read_status(run).word == "running or killed" and "elsewhere" in read_status(run).sentence
    rewrite(run, status="resting")
    assert read_status(run).word == "unknown"
    (run / "summary.json").write_text("{")
    assert read_status(run).word == "unknown" and str(run / "summary.json") in read_status(run).sentence


def test_without_locks_the_process_is_asked_for(run, monkeypatch):
    monkeypatch.setattr(status, "fcntl", None)
    rewrite(run, status="running", pid=os.getpid(), host=socket.gethostname())
    assert is_held(run) is None and read_status(run).word == "running"
    for pid in (dead_process(), "x", None):
        rewrite(run, pid=pid)
        assert read_status(run).word == "killed"


def test_a_run_is_trained_by_one_process(run, capsys):
    rewrite(run, status="running")
    with hold(run):
        assert main(["train", "--resume", str(run), "--epochs", "2"]) == 1
        assert main(["inspect", str(run)]) == 0
    refused, note = capsys.readouterr().err.splitlines()[-2:]
    assert "is being trained by process" in refused and "wait for its end" in refused
    assert note.startswith(f"note: {run} is being trained by process")


def test_a_killed_run_is_never_called_finished(run, capsys):
    rewrite(run, status="running")
    capsys.readouterr()
    assert main(["inspect", str(run)]) == 0
    assert f"note: {run} was killed; it was last heard of at 20" in capsys.readouterr().err
    assert main(["train", "--resume", str(run)]) == 0, "all its epochs are done, but it did not come to its end"
    assert f"{run} was killed" in capsys.readouterr().err
    assert read_status(run).word == "finished"


def test_a_run_killed_before_its_first_checkpoint_begins_again(run, capsys):
    for name in ("checkpoint.safetensors", "summary.json"):
        (run / name).unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert "goes on after step 0" in capsys.readouterr().err
    assert read_status(run).word == "finished"


def test_a_folder_in_which_a_crash_left_nothing_but_a_first_write_is_empty(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml.new").write_text("meth")
    assert main(["train", *SMALL, "--out", str(tmp_path / "run")]) == 0


def test_the_first_signal_asks_and_a_second_ctrl_c_stops_at_once():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored
    try:
        for first, code, name in ((signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")):
            with StopSignals() as signals:
                signal.raise_signal(first)
                signal.raise_signal(signal.SIGTERM)
                assert (signals.received, signals.exit_status, signals.reason) == (first, code, f"stopped by {name}")
                with pytest.raises(KeyboardInterrupt):
                    signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGINT, before[signal.SIGINT])


def test_a_second_ctrl_c_while_saving_leaves_the_checkpoint_before(tmp_path, monkeypatch, capsys):
    plain, saves = RunRecorder._save, []

    def save(recorder):
        saves.append(recorder)
        if len(saves) == 2:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
        plain(recorder)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(RunRecorder, "_save", save)
    try:
        assert main(["train", *SMALL, "--checkpoint_minutes", "0", "--out", str(tmp_path / "run")]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["checkpoint_step"]) == ("interrupted", 2, 1)
    assert "goes on after step 1" in capsys.readouterr().err
