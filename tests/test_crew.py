"""Several processes on the command line: the same run as one, an honest end, and any number of ranks to go on with."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from runs import metrics, train
from targetprop.experiments import board as board_module
from targetprop.experiments import crew as crew_module
from targetprop.experiments import pulse as pulse_module
from targetprop.experiments import stop_signals as stop_module
from targetprop.experiments import train as train_module
from targetprop.experiments.checkpoint import load_checkpoint
from targetprop.experiments.crew import Crew, Lost
from targetprop.experiments.errors import CommandError
from targetprop.experiments.meeting import Meeting, join
from targetprop.experiments.pulse import LOOKS, Pulse, is_sibling
from targetprop.experiments.run_folder import RunFolder, end_for_another
from targetprop.experiments.screen import Screen
from targetprop.experiments.seat import Seat, find_seat
from targetprop.experiments.session import check_in_step, find_device
from targetprop.experiments.stop_signals import StopSignals, impatient
from targetprop.experiments.streams import begin_stream, gather_streams, restore_stream
from targetprop.ranks import Ranks

# 1437 samples in batches of 359: the last one has a single sample, and rank 1 no part in it.
SMALL = (
    "--network.widths 12 12 --batch_size 359 --log_every 2 --device cpu --optimizer.name sgd --optimizer.lr 0.1"
    " --data.crop 1 --data.flip true"
).split()
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr(train_module, "draw_curves", lambda path: path)


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def same_run(first: Path, second: Path) -> None:
    """Compare runs to the rounding of float32, which a few steps have made somewhat larger."""
    one, two = (
        {name: t for name, t in load_file(run / "checkpoint.safetensors").items() if not name.startswith("streams")}
        for run in (first, second)
    )
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
    for a, b in zip(metrics(first), metrics(second), strict=True):
        flat = [json.loads(json.dumps(line), object_pairs_hook=_leaves) for line in (a, b)]
        assert flat[0] == pytest.approx(flat[1], rel=1e-3, abs=1e-5)
    assert (first / "config.yaml").read_text() == (second / "config.yaml").read_text()


def _leaves(pairs: list[tuple]) -> dict:
    """Flatten nested dictionaries, which approx does not look into; it takes numbers only."""
    flat = {}
    for key, value in pairs:
        value = hash(value) if isinstance(value, str) else value
        flat |= {f"{key}/{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def test_two_ranks_make_the_run_of_one_and_one_goes_on_with_it(tmp_path):
    made = subprocess.run(
        [*TORCHRUN, "-m", "targetprop", "train", *SMALL, "--epochs", "2", "--out", tmp_path / "two"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert made.stdout.count("run folder") == 1 and made.stderr.count("epoch 2/2: loss") == 1
    assert train(*SMALL, "--epochs", 2, "--out", tmp_path / "one") == 0
    same_run(tmp_path / "one", tmp_path / "two")
    assert [summary(tmp_path / name)["ranks"] for name in ("one", "two")] == [1, 2]
    streams = [load_checkpoint(tmp_path / name)["streams"] for name in ("one", "two")]
    assert [len(others) for others in streams] == [0, 1]
    first = load_checkpoint(tmp_path / "two")["random"]
    assert not torch.equal(first["cpu"], streams[1][0]["cpu"]), "both ranks draw the same dropout masks"
    assert train("--resume", tmp_path / "two", "--epochs", 3) == train("--resume", tmp_path / "one", "--epochs", 3) == 0
    same_run(tmp_path / "one", tmp_path / "two")
    assert summary(tmp_path / "two")["ranks"] == 1 and summary(tmp_path / "two")["status"] == "finished"


def start_both(accident: str, rank: int, *words: object, place: object = 8, **environment: str) -> tuple:
    """Train on two ranks, one with an accident at its eighth step; exit statuses and what each said.

    That saves the time that torchrun itself takes to start; several runs after another, parted by "then", save more.
    """
    listeners = [socket.socket() for _ in range(1 + words.count("then"))]
    for listener in listeners:
        listener.bind(("127.0.0.1", 0))
    ports = [str(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    script = Path(__file__).with_name("ranks_command.py")
    arguments = [sys.executable, script, accident, rank, place, "train", *words]
    processes = [
        subprocess.Popen(
            list(map(str, arguments)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | environment | {
                "RANK": str(own), "LOCAL_RANK": str(own), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                "PORTS": " ".join(ports),
            },
        )
        for own in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=100)[1] for process in processes]
    return [process.returncode for process in processes], *said


def test_rank_that_hangs_is_ended_with_a_reason_and_one_rank_goes_on(tmp_path):
    codes, said, _ = start_both("frozen", 1, *SMALL, "--epochs", 3, "--out", tmp_path / "run", PERIOD="0.3")
    assert codes == [1, -signal.SIGKILL]
    found = summary(tmp_path / "run")
    assert (found["status"], found["epochs"]) == ("failed", 1)
    assert found["reason"].startswith("rank 1 did not answer for 20 seconds")
    assert f"failed in epoch 2: {found['reason']}" in said and "Traceback" not in said
    assert train("--resume", tmp_path / "run") == 0
    assert train(*SMALL, "--epochs", 3, "--out", tmp_path / "whole") == 0
    same_run(tmp_path / "whole", tmp_path / "run")


@pytest.fixture(scope="module")
def dropped_out(tmp_path_factory):
    """Runs with dropout: one whole, one in parts, and one that rank 1 was killed in before it could go on."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = [*SMALL, "--method", "backprop", "--epochs", 2, "--out"]
    commands = [
        ["nothing", 0, 0, "train", *recipe, folder / "whole"],
        ["stopped", 1, 7, "train", *recipe, folder / "parts"],
        ["nothing", 0, 0, "train", "--resume", folder / "parts"],
        ["stopped", 1, 1, "train", *recipe, folder / "lost"],
        ["killed", 1, "build", "train", "--resume", folder / "lost"],
    ]
    words = [word for command in commands for word in ("then", *command)]
    codes, said, _ = start_both("nothing", 0, "--help", *words, DROPOUT="")
    return folder, codes, said


def test_rank_that_is_killed_before_training_ends_the_other_in_a_sentence(dropped_out):
    folder, codes, said = dropped_out
    found = summary(folder / "lost")
    assert codes == [1, -signal.SIGKILL] and (found["status"], found["checkpoint_step"]) == ("failed", 1)
    assert found["reason"].startswith("rank 1 gave no reason; the system may have killed it")
    assert said.endswith(f"targetprop: the run did not begin: {found['reason']}\n") and "Traceback" not in said


def test_ranks_with_dropout_go_on_bit_for_bit(dropped_out):
    whole, parts = (dropped_out[0] / name for name in ("whole", "parts"))
    one, two = (load_file(run / "checkpoint.safetensors") for run in (whole, parts))
    assert [name for name in one if not torch.equal(one[name], two[name])] == [] and one.keys() == two.keys()
    assert metrics(whole) == metrics(parts) and "streams/0/cpu" in one
    assert summary(parts)["status"] == "finished"


class Others(Ranks):
    """One of several ranks, which sums what the others put down before it."""

    alone = False

    def __init__(self, rank: int, size: int, left: list[torch.Tensor]) -> None:
        self.rank, self.size, self.device, self.left = rank, size, torch.device("cpu"), left

    def sum_(self, tensors):
        self.left.append(tensors[0].clone())
        tensors[0].copy_(torch.stack(self.left).sum(0, dtype=tensors[0].dtype))


def draws(states: dict | None = None) -> float:
    if states is not None:
        torch.set_rng_state(states["cpu"])
    return float(torch.rand(()))


def test_every_rank_has_random_numbers_of_its_own():
    left, found = [], []
    for rank in (2, 1, 0):
        ranks = Others(rank, 3, left)
        torch.manual_seed(5)
        begin_stream(ranks, 5)
        first, others = {"cpu": torch.get_rng_state()}, gather_streams(ranks)
        found.append(draws())
    assert found[2] == draws(torch.manual_seed(5) and None), "rank 0 draws what one process does"
    assert len(set(found)) == 3 and [draws(state) for state in others] == [found[1], found[0]]
    drawn = []
    for rank in range(5):
        restore_stream(Others(rank, 5, []), first, others, 5, 7)
        drawn.append(draws())
    assert drawn[:3] == found[::-1] and len(set(drawn)) == 5
    restore_stream(Others(4, 5, []), first, others, 5, 8)
    assert draws() not in drawn, "a rank that joins again later does not repeat itself"
    assert gather_streams(Ranks()) == []


def test_the_run_of_a_killed_rank_0_does_not_stay_running(tmp_path):
    run, wrong = RunFolder(tmp_path / "run"), tmp_path / "none"
    run.path.mkdir()
    for before, after in (("running", "failed"), ("finished", "finished")):
        run.write_summary({"status": before, "reason": None, "epochs": 2})
        end_for_another(run.path, "rank 0 gave no reason")
        assert (summary(run.path)["status"], summary(run.path)["epochs"]) == (after, 2)
    end_for_another(wrong, "")
    assert not wrong.exists()


@pytest.fixture
def crew(monkeypatch):
    monkeypatch.setattr(crew_module, "_PATIENCE", 0.0)
    return lambda rank, store: Crew(Seat(rank, 3), store)


def lose_another() -> int:
    raise ConnectionError("another rank has ended or does not answer (closed)")


def fail() -> int:
    raise MemoryError("no memory")


def ended(crew: Crew, action=lose_another) -> tuple[str, str, int]:
    with pytest.raises(Lost) as stop:
        crew.work(action)
    return stop.value.status, stop.value.reason, stop.value.code


def test_the_rank_that_failed_is_heard(crew):
    store = dist.HashStore()
    with pytest.raises(MemoryError):
        crew(2, store).work(fail)
    for rank in (1, 0):
        assert ended(crew(rank, store)) == ("failed", "rank 2: no memory", 1)


def test_silent_ranks_are_named(crew):
    store = dist.HashStore()
    status, reason, code = ended(crew(0, store))
    assert (status, code) == ("failed", 1) and reason.startswith("rank 1 or 2 gave no reason")
    last = crew(1, store)
    ended(last)
    assert not last.bereft, "rank 0 has ended in good order"


def test_rank_1_notices_that_rank_0_is_gone(crew, tmp_path, monkeypatch):
    store = dist.HashStore()
    crew(0, store).leave_folder(tmp_path)
    heirs = [crew(rank, store) for rank in (2, 1)]
    for heir in heirs:
        assert ended(heir)[0] == "failed"
    assert [heir.bereft for heir in heirs] == [False, True] and heirs[1].find_folder() == tmp_path
    assert crew(1, dist.HashStore()).find_folder() is None
    beats = iter(range(9))
    monkeypatch.setattr(board_module.Board, "read", lambda *_: next(beats))
    assert crew_module._lives(board_module.Board(store), 0), "it still waits for this rank to leave"


def test_a_finished_run_is_left_by_rank_0_first_when_all_have_finished(crew, monkeypatch):
    store, seen = dist.HashStore(), []
    first, second, third = (crew(rank, store) for rank in range(3))
    for one in (first, second):
        one.work(lambda: 0)

    def finish_the_third() -> None:
        seen.append(store.check(["over"]))
        third.work(lambda: 0)

    monkeypatch.setattr(board_module, "pause", finish_the_third)
    first.leave()
    assert seen == [False] and store.check(["over"])
    for one in (second, third):
        one.leave()
    failed = crew(2, dist.HashStore())
    ended(failed)
    monkeypatch.setattr(crew_module, "pause", lambda: pytest.fail("there is nothing to wait for"))
    failed.leave()


def test_ranks_wait_for_each_other_until_one_ends(crew):
    def key(rank: int) -> str:
        return f"ready/{rank}"

    for word, reason in (("reason/2", "rank 2 has ended"), ("silent/2", "rank 2 has ended"), ("", "within 0 seconds")):
        store = dist.HashStore()
        for name in ("ready/1", word):
            store.set(name, "")
        with pytest.raises(ConnectionError, match=reason):
            crew(0, store).meet(key, "get ready", 0.0)
        assert store.check(["ready/0"])
    stopped = crew(0, dist.HashStore())
    stopped.signals.received = signal.SIGTERM
    with pytest.raises(ConnectionError, match="stopped by SIGTERM before rank 1 could get ready"):
        stopped.meet(key, "get ready", 9.0)
    Crew(Seat()).meet(key, "get ready", 9.0)
    assert Meeting(Crew(Seat())).connect(torch.device("cpu")) is None


def test_a_rank_that_is_silent_for_long_is_lost_and_a_busy_one_is_not():
    store = dist.HashStore()
    pulses = [Pulse(Seat(rank, 3), store, lambda ranks: None) for rank in range(3)]
    looks = []
    for _ in range(LOOKS + 1):
        looks.append([pulses[rank].look() for rank in (0, 1)])
    assert looks[:-1] == [[[], []]] * LOOKS and looks[-1] == [[2], []]
    pulses[2].look()
    assert pulses[0].look() == [], "it has only been slow"


@pytest.mark.parametrize("sibling", [True, False])
def test_silent_ranks_of_this_machine_are_ended(monkeypatch, sibling):
    store, killed, told = dist.HashStore(), [], SimpleQueue()
    monkeypatch.setattr(pulse_module, "PERIOD", 0.0)
    monkeypatch.setattr(pulse_module, "is_sibling", lambda pid: sibling)
    monkeypatch.setattr(pulse_module.os, "kill", lambda pid, number: killed.append((pid, number)))
    Pulse(Seat(1, 2), store, told.put)
    watcher = Pulse(Seat(0, 2), store, told.put)
    watcher.start()
    assert told.get(timeout=60) == [1] and store.check(["silent/1"])
    assert killed == [(os.getpid(), signal.SIGKILL)] * sibling
    before = store.get("beat/0")
    while store.get("beat/0") == before:
        assert watcher._thread.is_alive(), "the others would take this rank for lost too"
    watcher.stop()
    watcher._thread.join(60)
    assert not watcher._thread.is_alive()


def test_only_another_child_of_the_same_parent_is_a_sibling():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not is_sibling(child.pid) and not is_sibling(os.getpid()) and not is_sibling(2**31 - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pulse_module.os, "getppid", os.getpid)
        assert is_sibling(child.pid)
    child.communicate(b"\n")


def test_rank_that_hung_is_told_from_one_that_was_killed(crew):
    store = dist.HashStore()
    store.set("silent/0", "")
    store.set("reason/2", "-")
    last = crew(1, store)
    assert ended(last)[1].startswith("rank 0 did not answer for 20 seconds") and last.bereft


def test_rank_that_waits_for_a_lost_machine_ends_itself(crew, monkeypatch, capsys):
    store, said = dist.HashStore(), []
    monkeypatch.setattr(crew_module, "GRACE", 0.0)
    monkeypatch.setattr(crew_module.os, "_exit", said.append)
    store.set("silent/1", "")
    store.set("reason/2", "-")
    waiting = crew(0, store)
    waiting.last_words = lambda status, reason: said.append((status, reason))
    waiting.end_without([1])
    (status, reason), code = said
    assert (status, code) == ("failed", 1) and reason.startswith("rank 1 did not answer for 20 seconds")
    assert capsys.readouterr().err == f"targetprop: {reason}\n"
    ended(waiting)
    waiting.end_without([1])
    assert len(said) == 2, "it has noticed by itself"


@pytest.fixture
def ctrl_c():
    """Hear of Ctrl-C, which a job in the background starts with ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGINT, "stopped by Ctrl-C"), (signal.SIGTERM, "stopped by SIGTERM")]
)
def test_rank_that_is_left_alone_after_a_signal_was_stopped_by_it(crew, ctrl_c, number, reason):
    store = dist.HashStore()
    for rank in (2, 1, 0):
        mine = crew(rank, store)

        def work() -> int:
            signal.raise_signal(number)
            return lose_another()

        with mine.signals:
            status, said, code = ended(mine, work)
        assert rank or (status, said, code) == ("interrupted", reason, 128 + number)


def test_a_signal_to_one_rank_stops_all_and_either_number_of_ranks_goes_on_within_the_epoch(tmp_path, monkeypatch):
    codes, said, _ = start_both("stopped", 1, *SMALL, "--epochs", 2, "--out", tmp_path / "two")
    assert codes == [143, 143] and "stopped by SIGTERM after step 7" in said
    found = summary(tmp_path / "two")
    assert (found["status"], found["steps"], found["checkpoint_step"]) == ("interrupted", 7, 7)
    assert train("--resume", tmp_path / "two") == 0
    assert train(*SMALL, "--epochs", 2, "--out", tmp_path / "whole") == 0
    same_run(tmp_path / "whole", tmp_path / "two")
    with monkeypatch.context() as patch:
        patch.setattr(Screen, "on_step", lambda self, record: signal.raise_signal(signal.SIGTERM))
        assert train(*SMALL, "--epochs", 2, "--out", tmp_path / "one") == 143
    more = ["then", "nothing", 0, 0, "train", "--resume", tmp_path / "one", "--epochs", 3]
    assert start_both("nothing", 0, "--resume", tmp_path / "one", *more)[0] == [0, 0]
    assert train("--resume", tmp_path / "whole", "--epochs", 3) == 0
    same_run(tmp_path / "whole", tmp_path / "one")
    assert summary(tmp_path / "one")["ranks"] == 2


def test_process_that_hangs_after_a_signal_is_ended(monkeypatch):
    said = []
    monkeypatch.setattr(stop_module, "GRACE", 0.0)
    monkeypatch.setattr(stop_module.os, "_exit", said.append)
    signals, before = StopSignals(), signal.getsignal(signal.SIGTERM)
    with signals, impatient(signals, lambda: said.append(signals.reason)):
        signal.raise_signal(signal.SIGTERM)
        while len(said) < 2:
            pass
    assert said == ["stopped by SIGTERM", 143]
    assert signal.getsignal(signal.SIGTERM) is before


def test_rank_0_alone_decides_by_the_clock(crew):
    session = SimpleNamespace(ranks=Ranks(), place=None)
    assert [crew(rank, None).agree(session, save=True) for rank in (0, 1)] == [(False, True), (False, False)]


@pytest.mark.parametrize(
    ("told", "seat"),
    [
        ({}, Seat()),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, Seat()),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "x"}, Seat(5, 8, 1)),
        ({"RANK": "", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "x"}, Seat()),
    ],
)
def test_seat_is_what_torchrun_says(monkeypatch, told, seat):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert find_seat() == seat


def test_only_rank_0_speaks_of_what_all_ranks_see(monkeypatch, capsys):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, value)
    assert train("--wrong", "1") == 2 and train("--help") == 0 and train("--print_config") == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert train("--device", "cpu") == 1
    assert "targetprop: rank 1: the 2 processes of the run did not meet" in capsys.readouterr().err


def test_every_process_needs_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert find_device("auto", 0) == torch.device("cuda", 0) and find_device("cpu", 5) == torch.device("cpu")
    with pytest.raises(CommandError, match="there are 1 GPUs and at least 2 processes here"):
        find_device("cuda", 1)


def test_one_process_meets_nobody():
    with join(Seat()) as meeting:
        assert meeting.connect(torch.device("cpu")) is None and meeting.crew.keeps
    assert not dist.is_initialized()


def test_ranks_that_drift_apart_are_noticed():
    seen = []
    ranks = SimpleNamespace(alone=False, device="cpu", differs=lambda sums: seen.append(sums.tolist()) or True)
    engine = SimpleNamespace(state_dict=lambda: {"decoders": {"v": torch.ones(2)}})
    session = SimpleNamespace(ranks=ranks, engine=engine, model=torch.nn.Linear(2, 1))
    with pytest.raises(CommandError, match="no longer have the same weights"):
        check_in_step(session)
    assert len(seen[0]) == 3 and seen[0][2] == 2.0
