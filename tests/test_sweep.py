"""``targetprop sweep``: what is drawn, what runs, what is pruned, and that a second call goes on."""

import json
import re
from importlib import import_module
from math import inf
from multiprocessing import get_context
from pathlib import Path

import pytest
from optuna.trial import FixedTrial

from targetprop.experiments.errors import CommandError
from targetprop.experiments.main import main
from targetprop.experiments.signals import StopSignals
from targetprop.runs.folder import RunFolder
from targetprop.runs.status import read_status
from targetprop.sweep import command, process
from targetprop.sweep.command import train_source
from targetprop.sweep.process import Plan, RunProcess
from targetprop.sweep.request import Sweep, read_seeds, read_sweep
from targetprop.sweep.space import Choice, Range, read_space
from targetprop.sweep.study import completed
from targetprop.sweep.trials import Search, list_confirmations, list_runs

LR = ["--optimizer.lr", "1e-3..1e-1:log"]


@pytest.mark.parametrize(
    ("text", "kind", "space"),
    [
        ("1e-4..1e-2:log", float, Range(1e-4, 1e-2)),
        ("-1..0.5", float, Range(-1.0, 0.5, log=False)),
        ("1..8", int, Range(1, 8, log=False, whole=True)),
        ("1..8", int | None, Range(1, 8, log=False, whole=True)),
        ("1..8", float, Range(1, 8, log=False)),
        ("adam,sgd", str, Choice(("adam", "sgd"))),
        ("16, 32,16", int, Choice(("16", "32"))),
        ("[64, 64],[32]", list[int], Choice(("[64, 64]", "[32]"))),
        ("[64, 64]", list[int], None),
        ("64,64", list[int], None),
        ("../data", str, None),
        ("0.1", float, None),
        ("", bool, None),
    ],
)
def test_a_text_is_a_range_choices_or_a_value(text, kind, space):
    assert read_space("x", text, kind) == space


@pytest.mark.parametrize(
    ("text", "kind"), [("2..1", float), ("0..1:log", float), ("0.5..2", int), ("1e-1..2:log", int)]
)
def test_an_impossible_range_is_refused(text, kind):
    with pytest.raises(CommandError, match=f"--x {text} is no range of"):
        read_space("x", text, kind)


def test_whole_numbers_stay_whole():
    value = read_space("x", "1..8", int).suggest(FixedTrial({"x": 3}), "x")  # type: ignore[union-attr]
    assert value == 3 and isinstance(value, int)


def test_seeds_are_a_range_or_a_list():
    assert read_seeds("2..4") == [2, 3, 4] and read_seeds("3,1,3") == [3, 1] and read_seeds("[0, 1]") == [0, 1]
    for text in ("4..2", "a", "1.5", "", "-1..2"):
        with pytest.raises(CommandError, match="--seeds must be FIRST..LAST"):
            read_seeds(text)


def test_a_request_tells_values_from_what_is_drawn(tmp_path):
    (tmp_path / "c.yaml").write_text("method: dtp\nseed: 7\nepochs: 3\noptimizer: {name: sgd, lr: 0.02}\n")
    found = read_sweep([str(tmp_path / "c.yaml"), *LR, "--decoder.updates", "1..3", "--out", "here"])
    assert found.values == {"method": "dtp", "epochs": "3", "optimizer.name": "sgd"}
    assert found.space == {"optimizer.lr": Range(1e-3, 1e-1), "decoder.updates": Range(1, 3, log=False, whole=True)}
    assert found.first == {"optimizer.lr": "0.02", "decoder.updates": "1"}, "the file's settings, or the defaults"
    assert (found.seeds, found.trials, found.jobs, found.out, found.epochs) == ([7], 20, 1, Path("here"), 3)
    assert read_sweep(["--method", "dtp,l-drl", "--seeds", "0..1"]).trials is None
    assert read_sweep(["--method", "dtp,l-drl", "--trials", "3"]).trials == 3


def test_every_combination_of_choices_meets_every_seed():
    found = read_sweep(["--method", "dtp,l-drl", "--batch_size", "64,128", "--seeds", "0..1"])
    plans = [list_runs(found).next()] + [plan for plan in iter(list_runs(found).next, None)]
    assert len(plans) == 1 + 8 and len({plan.path for plan in plans}) == 8
    settings = {(p.values["method"], p.values["batch_size"], p.values["seed"]) for p in plans}
    assert settings == {(m, b, s) for m in ("dtp", "l-drl") for b in ("64", "128") for s in "01"}
    assert read_sweep(["--seeds", "0..9"]).combinations() == [{}], "without choices all seeds of one configuration"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trials", "3"], "--trials needs a setting with a range"),
        (["--seed", "1", "--seeds", "0..2"], "--seed and --seeds cannot both be given"),
        (["--seed", "0..2"], "give --seeds for several"),
        (["--jobs", "0"], "--jobs must be a whole number ≥ 1"),
        (["--resume", "x"], "which is of targetprop train"),
        (["--optimizer.lr", "-1..1"], "--optimizer.lr must be a number > 0"),
        (["--optimizer.lr", "0..1:log"], "is no range of numbers"),
        (["--method", "dtp,l-drk"], "unknown method 'l-drk'"),
        (["--optimizer.name", "adam,sgd", "--optimizer.momentum", "0..0.9"], "has no option --optimizer.momentum"),
        (["nowhere.yaml"], "nowhere.yaml cannot be read"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_trains(words, message, capsys):
    assert main(["sweep", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_help_says_by_what_settings_are_judged(capsys):
    assert main(["sweep", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "never by the test set" in text and "--jobs" in text


class Fake:
    """A run that writes its metrics at once, an epoch with each look, as its learning rate says."""

    def __init__(self, plan: Plan, ends: bool = True) -> None:
        plan.path.mkdir(exist_ok=True)
        self.plan, self.pruned, self.ends, self.sentinel = plan, "", ends, 0
        self._folder, self._epochs = RunFolder(plan.path), []
        self._rate = float(plan.values.get("optimizer.lr", 0.01))
        self._folder.write_config("method: l-drl\n")

    @property
    def has_ended(self) -> bool:
        return bool(self.pruned) or (self.ends and len(self._epochs) == self.plan.epochs)

    def new_epochs(self) -> list[dict]:
        if len(self._epochs) < self.plan.epochs:
            # The loss to minimise is that on held-out data, which falls with the rate; the others rise.
            record = {"kind": "epoch", "epoch": len(self._epochs) + 1, "step": 1, "seconds": 1.0}
            losses = {"validation_loss": 1 / self._rate, "train_loss": self._rate, "test_loss": self._rate}
            self._epochs.append({**record, **losses, "test_accuracy": 0.5})
            self._folder.log(self._epochs[-1])
        return self._epochs

    prune, stop, kill = RunProcess.prune, lambda self: None, lambda self: None

    def finish(self):
        word = "pruned" if self.pruned else "finished" if self.has_ended else "interrupted"
        self._folder.write_summary({"status": word, "reason": self.pruned or None, "diverged": False})
        return read_status(self.plan.path)


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(command, "wait", lambda sentinels, seconds: None)


def search_in(folder: Path, trials: int, epochs: int = 1) -> tuple[Sweep, Search]:
    words = ["--epochs", str(epochs), *LR, "--trials", str(trials), "--seeds", "4..6", "--out", str(folder)]
    return (found := read_sweep(words)), Search(found)


def drawn(search: Search) -> list[tuple[dict, float]]:
    return [(trial.params, trial.value) for trial in completed(search._study)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Sweep, Search]:
    """A search of six trials, the last of which is the sampler's first guess."""
    found, search = search_in(tmp_path_factory.mktemp("whole"), 6)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(command, "wait", lambda sentinels, seconds: None)
        train_source(search, 1, StopSignals(), Fake)  # type: ignore[arg-type]
    return found, search


def test_trials_minimise_the_loss_on_held_out_data_and_the_best_meets_the_other_seeds(whole):
    found, search = whole
    results = drawn(search)
    assert len(results) == 6 == search.done and results[0][0] == {"optimizer.lr": 0.001}, "first its own settings"
    assert all(value == 1 / params["optimizer.lr"] for params, value in results)
    assert len({value for _, value in results}) == 6, "every trial draws for itself"
    best = search.best
    assert best is not None and best.value == min(value for _, value in results)
    plans = list(iter(list_confirmations(found, best).next, None))
    assert [plan.values["seed"] for plan in plans] == ["5", "6"]
    assert {float(plan.values["optimizer.lr"]) for plan in plans} == {best.params["optimizer.lr"]}
    assert all((found.out / f"{number:03}-s4" / "config.yaml").exists() for number in range(6))


def test_a_search_goes_on_as_if_it_had_not_stopped(tmp_path, quick, whole):
    signals, started = StopSignals(), []

    def start(plan: Plan) -> Fake:
        started.append(plan.path.name)
        signals.received = 2 if len(started) == 4 else None
        return Fake(plan)

    _, first = search_in(tmp_path, 6)
    train_source(first, 1, signals, start)  # type: ignore[arg-type]
    assert first.done == 3, "the fourth has a run and no result"
    signals.received = None
    _, second = search_in(tmp_path, 6)
    train_source(second, 1, signals, start)  # type: ignore[arg-type]
    assert started == [f"{number:03}-s4" for number in (0, 1, 2, 3, 3, 4, 5)]
    assert drawn(second) == drawn(whole[1])
    with pytest.raises(CommandError, match=r"holds a sweep with other settings \(epochs\)"):
        search_in(tmp_path, 6, epochs=2)


def test_a_trial_above_the_median_of_five_is_pruned(tmp_path, quick):
    _, search = search_in(tmp_path, 9, epochs=5)
    train_source(search, 1, StopSignals(), Fake)  # type: ignore[arg-type]
    words = [read_status(tmp_path / f"{number:03}-s4").word for number in range(9)]
    assert words[:5] == ["finished"] * 5 and words.count("pruned") > 0 and search.done == 9
    pruned = tmp_path / f"{words.index('pruned'):03}-s4"
    epochs = (pruned / "metrics.jsonl").read_text().splitlines()
    assert len(epochs) == 2, "the first fifth of the epochs is never pruned"
    medians = sorted(value for _, value in drawn(search)[:5])
    assert json.loads(epochs[-1])["validation_loss"] > medians[2]
    assert "validation loss until epoch 2 was above the median" in read_status(pruned).sentence


def test_a_run_that_diverges_is_an_infinite_value(tmp_path, quick):
    def diverging(plan: Plan) -> Fake:
        run = Fake(plan)

        def finish():
            run._folder.write_summary({"status": "failed", "reason": "NaN", "diverged": True})
            return read_status(plan.path)

        run.finish = finish  # type: ignore[method-assign]
        return run

    _, search = search_in(tmp_path, 2)
    train_source(search, 1, StopSignals(), diverging)  # type: ignore[arg-type]
    assert [value for _, value in drawn(search)] == [inf, inf] and search.best is None


@pytest.fixture
def forked(monkeypatch) -> list[Path]:
    """Fork this process, which is faster than a new one, and note what would be compared."""
    compared: list[Path] = []
    for name in process._IMPORTED:
        import_module(name)
    monkeypatch.setattr(process, "_context", lambda: get_context("fork"))
    monkeypatch.setattr(command, "write_comparison", lambda runs, out: compared.extend(runs))
    return compared


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_two_seeds_train_in_processes_and_are_compared(tmp_path, capsys, forked):
    words = "--network.widths 6 --batch_size 512 --data.limit 512 --data.validation 0.1 --device cpu --epochs 1".split()
    words = ["sweep", *words, "--seeds", "0..1", "--jobs", "2", "--out", str(tmp_path)]
    assert main(words) == 0
    assert re.search(r"^run 2/2: seed [01]: validation loss [\d.]+ after 1 epochs$", capsys.readouterr().err, re.M)
    assert forked == [tmp_path / "000-s0", tmp_path / "000-s1"]
    assert all(read_status(run).word == "finished" for run in forked)
    before = [(run / "summary.json").read_bytes() for run in forked]
    assert json.loads(before[0])["seed"] == 0 and json.loads(before[1])["seed"] == 1
    assert main(words) == 0 and "run " not in capsys.readouterr().err
    assert before == [(run / "summary.json").read_bytes() for run in forked[:2]], "nothing was left to train"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_what_ends_a_run_early_is_said(tmp_path, capsys, forked):
    missing = ["--data.name", "mnist", "--data.root", str(tmp_path)]
    assert main(["sweep", *missing, "--seeds", "0..1", "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "000-s0 did not come to its end: " in error and str(tmp_path) in error
