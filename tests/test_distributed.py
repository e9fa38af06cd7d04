"""Several processes on the command line: the same run as one, an honest end, and any number of ranks to go on with."""

import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import new_process
import ranks_command
from runs import metrics, train
from targetprop.experiments.build import find_device
from targetprop.experiments.distributed import Processes, connect, on_every_rank
from targetprop.experiments.errors import CommandError
from targetprop.experiments.progress import TrainingProgress
from targetprop.experiments.random_state import begin_random_stream, random_state, restore_random_state
from targetprop.experiments.state import TrainState
from targetprop.runs.checkpoint import load_checkpoint

TIMEOUT = 4.0  # seconds that a rank waits for one that is frozen
# 1437 samples in batches of 359: the last one has a single sample, and rank 1 no part in it. The ranks agree after each
# of the five steps, and after the epoch: for the eighth time after step 7.
SMALL = (
    "--network.widths 12 12 --batch_size 359 --log_every 2 --device cpu --optimizer.name sgd --optimizer.lr 0.1"
    " --data.crop 1 --data.flip true"
).split()
DROPOUT = {"dropout": True}


def command(*words: object) -> list[str]:
    return ["train", *map(str, words)]


def accident(name: str, rank: int, place: int) -> dict:
    return {"accident": name, "rank": rank, "place": place}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The folder of the runs, and how the ranks of each ended."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingProgress, "on_step", lambda self, record: signal.raise_signal(signal.SIGTERM))
        assert train(*SMALL, "--epochs", 2, "--out", folder / "one") == 143
    new = [*SMALL, "--epochs", 2, "--out"]
    dropout = [*SMALL, "--method", "backprop", "--epochs", 2, "--out"]
    scenarios = {
        "alone": command(*new, folder / "alone"),
        "two": {"argv": command(*new, folder / "two")},
        "one": {"argv": command("--resume", folder / "one")},
        "memory": {"argv": command(*new, folder / "memory"), **accident("memory", 1, 8)},
        "frozen": {
            "argv": command(*new, folder / "frozen"), **accident("frozen", 1, 8),
            "environment": {"TARGETPROP_TIMEOUT": str(TIMEOUT)},
        },
        "whole": {"argv": command(*dropout, folder / "whole"), **DROPOUT},
        "parts": {"argv": command(*dropout, folder / "parts"), **accident("stopped", 1, 8), "late": True, **DROPOUT},
        "parts, resumed": {"argv": command("--resume", folder / "parts"), **DROPOUT},
        "at once": {"argv": command(*new, folder / "at once"), **accident("stopped at once", 1, 8)},
        "wrong": {"argv": command("--wrong", 1)},
        "timeout": {"argv": command(*new, folder / "none"), "environment": {"TARGETPROP_TIMEOUT": "soon"}},
        "killed": {"argv": command(*new, folder / "killed"), **accident("killed", 1, 8), "launched": True},
        "interrupt": {"argv": command(*new, folder / "interrupt"), **accident("interrupt", 0, 8), "launched": True},
    }  # fmt: skip
    path = folder / "scenarios.json"
    path.write_text(json.dumps(scenarios))
    code, said = new_process.run(ranks_command.play_all, path)
    assert code == 0, said[-5000:]
    return folder, json.loads(path.read_text())


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def same_run(first: Path, second: Path) -> None:
    """Compare runs to the rounding of float32, which a few steps have made somewhat larger."""
    one, two = (
        {name: t for name, t in load_file(run / "checkpoint.safetensors").items() if not name.startswith("random")}
        for run in (first, second)
    )
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
    for a, b in zip(metrics(first), metrics(second), strict=True):
        flat = [json.loads(json.dumps(line), object_pairs_hook=_leaves) for line in (a, b)]
        assert flat[0] == pytest.approx(flat[1], rel=1e-3, abs=1e-5)
    assert (first / "config.yaml").read_text() == (second / "config.yaml").read_text()


def _leaves(pairs: list[tuple]) -> dict:
    """Flatten nested dictionaries, which approx does not look into; it takes numbers only, and None is none."""
    flat = {}
    for key, value in pairs:
        value = hash(value) if value is None or isinstance(value, str) else value
        flat |= {f"{key}/{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def test_two_ranks_make_the_run_of_one_and_one_goes_on_with_it(ended, tmp_path):
    folder, found = ended
    said, silent = found["two"]["said"]
    assert found["two"]["codes"] == [0, 0] and silent == ""
    assert said.count("run folder") == said.count("epoch 2/2: loss") == 1
    alone, two = (shutil.copytree(folder / name, tmp_path / name) for name in ("alone", "two"))
    same_run(alone, two)
    assert [summary(run)["ranks"] for run in (alone, two)] == [1, 2]
    first, second = load_checkpoint(two)["random"]
    assert not torch.equal(first["cpu"], second["cpu"]), "both ranks draw the same dropout masks"
    for run in (alone, two):
        assert train("--resume", run, "--epochs", 3) == 0
    same_run(alone, two)
    assert summary(two)["ranks"] == 1 and summary(two)["status"] == "finished"


def test_two_ranks_go_on_within_an_epoch_of_one(ended):
    folder, found = ended
    assert found["one"]["codes"] == [0, 0] and "goes on after step 1" in found["one"]["said"][0]
    same_run(folder / "alone", folder / "one")
    assert summary(folder / "one")["ranks"] == 2


def test_a_signal_to_one_rank_stops_all_and_they_go_on_bit_for_bit_with_dropout(ended):
    folder, found = ended
    assert found["parts"]["codes"] == [143, 143] and "stopped by SIGTERM after step 7" in found["parts"]["said"][0]
    assert found["parts, resumed"]["codes"] == [0, 0]
    whole, parts = (folder / name for name in ("whole", "parts"))
    one, two = (load_file(run / "checkpoint.safetensors") for run in (whole, parts))
    assert [name for name in one if not torch.equal(one[name], two[name])] == [] and one.keys() == two.keys()
    assert metrics(whole) == metrics(parts) and "random/1/cpu" in one
    assert summary(parts)["status"] == "finished"


def test_the_rank_that_failed_is_heard(ended):
    folder, found = ended
    reason = "rank 1: a step of network 'dense' with --batch_size 359 does not fit in memory; make one of them smaller"
    assert found["memory"]["codes"] == [1, 1]
    assert summary(folder / "memory")["status"] == "failed" and summary(folder / "memory")["reason"] == reason
    assert (
        f"failed in epoch 2: {reason}" in found["memory"]["said"][0] and "Traceback" not in found["memory"]["said"][0]
    )


def test_a_rank_that_stops_at_once_does_not_confuse_the_others(ended):
    folder, found = ended
    reason = "rank 1: stopped at once by a second Ctrl-C after step 7"
    assert found["at once"]["codes"] == [1, 130]
    assert f"failed in epoch 2: {reason}" in found["at once"]["said"][0]
    run = summary(folder / "at once")
    assert (run["status"], run["checkpoint_step"]) == ("failed", 5) and run["reason"].startswith(reason)


def test_a_rank_that_is_frozen_ends_the_run_at_the_time_out_and_one_goes_on(ended):
    folder, found = ended
    assert found["frozen"]["codes"] == [1, -signal.SIGKILL] and found["frozen"]["seconds"] > TIMEOUT
    run = summary(folder / "frozen")
    assert (run["status"], run["epochs"], run["checkpoint_step"]) == ("failed", 1, 5)
    assert run["reason"].startswith("another rank has ended or does not answer (")
    assert train("--resume", folder / "frozen") == 0
    same_run(folder / "alone", folder / "frozen")


def test_only_rank_0_speaks_of_what_all_ranks_see(ended):
    for name, code, sentence in (("wrong", 2, "unknown option --wrong"), ("timeout", 2, "TARGETPROP_TIMEOUT must be")):
        found = ended[1][name]
        assert found["codes"] == [code, code] and found["said"][1] == ""
        assert sentence in found["said"][0] and found["said"][0].count("\n") == 1


def test_the_agent_of_torchrun_ends_all_and_the_summary_is_true(ended):
    """One run has a rank killed, the other's agent gets a Ctrl-C."""
    folder, found = ended
    killed, interrupted = summary(folder / "killed"), summary(folder / "interrupt")
    assert (killed["status"], killed["epochs"], killed["checkpoint_step"]) == ("failed", 1, 5)
    assert killed["reason"].startswith("another rank has ended or does not answer (")
    said = found["killed"]["said"]  # the agent tells of the rank whose end it sees first
    assert found["killed"]["code"] == 1 and "ChildFailedError" in said
    assert "Signal 9 (SIGKILL)" in said or "another rank has ended or does not answer (" in said
    assert (interrupted["status"], interrupted["reason"]) == ("interrupted", "stopped by Ctrl-C")
    assert interrupted["checkpoint_step"] == interrupted["steps"] >= 7 and found["interrupt"]["code"] != 0


def draws(states: list | None = None, rank: int = 0, step: int = 0) -> float:
    if states is not None:
        restore_random_state(states, rank, 5, step)
    return float(torch.rand(()))


def test_every_rank_has_random_numbers_of_its_own():
    states, found = [], []
    for rank in range(3):
        torch.manual_seed(5)
        begin_random_stream(rank, 5)
        states.append(random_state())
        found.append(draws())
    torch.manual_seed(5)
    assert found[0] == draws(), "rank 0 draws what one process does"
    drawn = [draws(states, rank, 7) for rank in range(5)]
    assert drawn[:3] == found and len(set(drawn)) == 5
    assert draws(states, 4, 8) not in drawn, "a rank that joins again later does not repeat itself"


def test_a_process_alone_has_no_group(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)  # as other schedulers set them, without an address
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    seen = []
    assert on_every_rank(lambda processes: seen.append(processes) or 0) == 0 and seen == [Processes()]
    with connect(Processes(), torch.device("cpu")) as processes:
        assert processes.group is None and processes.largest(3, 1) == [3, 1] and processes.gather("a") == ["a"]
    assert not dist.is_initialized()


def test_the_first_failure_is_told_and_a_rank_that_is_left_hears_it():
    store, lost = dist.HashStore(), ConnectionError("another rank has ended")
    ranks = [Processes(rank, 3, rank, store) for rank in range(3)]
    assert ranks[0].explain(lost) == "another rank has ended"
    assert ranks[0].explain(BrokenPipeError("closed")) == "closed", "its own reader is gone"
    left = CommandError("the run failed")
    left.__cause__ = lost
    assert ranks[1].explain(left) == "the run failed"
    assert [ranks[rank].explain(ValueError(f"bad {rank}")) for rank in (2, 1)] == ["bad 2", "bad 1"]
    assert ranks[0].explain(lost) == "rank 2: bad 2"


def test_every_process_needs_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert find_device("auto", Processes(0, 2, 0)) == torch.device("cuda", 0)
    assert find_device("cpu", Processes(5, 8, 5)) == torch.device("cpu")
    with pytest.raises(CommandError, match="there are 1 GPUs and at least 2 processes here"):
        find_device("cuda", Processes(1, 2, 1))


def test_ranks_that_drift_apart_are_noticed():
    seen = []
    processes = SimpleNamespace(size=2, gather=lambda sums: seen.append(sums) or [sums, [*sums[:2], sums[2] + 1e-9]])
    engine = SimpleNamespace(state_dict=lambda: {"decoders": {"v": torch.ones(2)}})
    state = SimpleNamespace(processes=processes, engine=engine, model=torch.nn.Linear(2, 1))
    with pytest.raises(CommandError, match="no longer have the same weights"):
        TrainState.check_alike(state)
    assert len(seen[0]) == 3 and seen[0][2] == 2.0
