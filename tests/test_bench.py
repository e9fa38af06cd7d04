"""The arena: runs, tuning that resumes, the table, the problems and the command."""

import json
import math
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
import torch

from targetprop.bench.competitors import COMPETITORS, Stepper
from targetprop.bench.competitors.gradient import Adam
from targetprop.bench.losses import SoftmaxCrossEntropy
from targetprop.bench.problems import (
    PROBLEMS,
    Autoencoder,
    Characters,
    Convolutions,
    DigitsAutoencoder,
    Narrow,
    Recurrent,
    Regression,
)  # fmt: skip
from targetprop.bench.problems.characters import library_text
from targetprop.bench.problems.recurrent import RowReader
from targetprop.bench.results import Outcome, format_table, rows
from targetprop.bench.run import History, train
from targetprop.bench.timing import Times, alternate
from targetprop.bench.tune import first_values, study_of, tune, with_values
from targetprop.experiments.errors import CommandError
from targetprop.experiments.main import main
from targetprop.sweep.study import completed

PROBLEM = DigitsAutoencoder(steps=20, batch=100)
TASK = PROBLEM.load()
ADAM = COMPETITORS["adam"]


def history(losses: list[float], second: float = 0.5) -> History:
    return History(losses, [second] * len(losses), {"train loss": 9.0, "test loss": losses[-1]})


def silent(number: int, loss: float) -> None:
    """Hear nothing."""


def test_a_run_reproduces_and_differs_by_seed() -> None:
    first, again, other = (train(PROBLEM, TASK, ADAM, seed, 20).losses for seed in (0, 0, 1))
    assert first == again != other
    assert train(PROBLEM, TASK, COMPETITORS["sgd"], 0, 20).losses[0] == first[0]


def test_a_run_follows_schedule_and_weight_decay() -> None:
    problem = Regression(steps=2, batch=2000, warmup=0.5, weight_decay=0.1, condition=1.0)
    task, model = problem.load(), problem.network(0)
    sgd = replace(COMPETITORS["sgd"], lr=0.2, momentum=0.0, clip=1e9)  # type: ignore[call-arg]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 - 0.2 * 0.1)
    task.loss(model(task.x), task.y).backward()
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(0.2 * p.grad).mul_(1 - 0.2 * 0.1)  # type: ignore[operator]
        expected = float(task.loss(model(task.x), task.y))
    assert train(problem, task, sgd, 0, 2).losses[1] == pytest.approx(expected, rel=1e-5)


def test_divergence_is_an_infinite_loss() -> None:
    run = train(PROBLEM, TASK, replace(COMPETITORS["sgd"], lr=1e30), 0, 20)
    assert run.diverged and run.at(1.0) == inf and len(run.losses) == 20
    row = rows({"adam": Outcome(ADAM, [history([1.0] * 20)]), "sgd": Outcome(ADAM, [run])}, _times("adam", "sgd"))[1]
    assert (row["competitor"], row["final"], row["steps"], row["diverged"]) == ("sgd", inf, inf, 1)


def test_loss_falls_at_the_optimum_of_a_regression() -> None:
    problem = Regression(condition=100.0, hidden=12)
    task = problem.load()
    values = torch.linalg.eigvalsh(task.x.T @ task.x / len(task.x))
    assert 50 < float(values[-1] / values[0]) < 250
    solution = torch.linalg.lstsq(task.x.double(), task.y.double()).solution
    assert float((task.x.double() @ solution - task.y).square().mean()) < 1e-10


def test_problems_have_their_shapes() -> None:
    large = [m for m in Autoencoder().network(0) if isinstance(m, torch.nn.Linear)]
    assert [m.in_features for m in large] == [784, 1000, 500, 250, 30, 250, 500, 1000]
    assert [type(m).__name__ for m in Autoencoder().network(0)] == [*["Linear", "Tanh"] * 3, *["Linear"] * 2] + [
        "Tanh", "Linear", "Tanh", "Linear", "Tanh", "Linear"
    ]  # fmt: skip
    narrow = [m for m in Narrow(depth=3).network(0) if isinstance(m, torch.nn.Linear)]
    assert [m.out_features for m in narrow] == [48, 48, 48, 10]
    with pytest.raises(CommandError, match="--root"):
        Autoencoder().load()
    with pytest.raises(ValueError, match="hidden"):
        Regression(hidden=3)


def test_evaluation_is_a_mean_over_all_samples() -> None:
    model = PROBLEM.network(0)
    with torch.no_grad():
        logits = model(TASK.x)
        squared = float((torch.sigmoid(logits) - TASK.x).square().sum(1).mean())
    assert TASK.evaluate(model)["train squared error"] == pytest.approx(squared, rel=1e-5)


def test_tuning_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = tune(PROBLEM, TASK, "adam", ADAM, 2, 6, tmp_path / "a", silent)  # the sixth is the sampler's first guess
    heard: list[int] = []
    tune(PROBLEM, TASK, "adam", ADAM, 2, 3, tmp_path / "b", silent)
    parts = tune(PROBLEM, TASK, "adam", ADAM, 2, 6, tmp_path / "b", lambda number, loss: heard.append(number))
    studies = [completed(study_of(PROBLEM, "adam", ADAM, 2, tmp_path / name)) for name in "ab"]
    assert [t.params for t in studies[0]] == [t.params for t in studies[1]]
    assert [t.value for t in studies[0]] == [t.value for t in studies[1]]
    assert heard == [4, 5, 6] and parts == whole
    best = min(studies[0], key=lambda trial: trial.value or inf)
    assert whole == with_values(ADAM, best.params)
    assert studies[0][0].params == pytest.approx(first_values(ADAM))
    with pytest.raises(CommandError, match="other settings"):
        study_of(replace(PROBLEM, batch=50), "adam", ADAM, 2, tmp_path / "a")


class _Broken(Stepper):
    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        raise FloatingPointError


class _Wild(Adam):
    def start(self, network: torch.nn.Sequential, loss: object, example: torch.Tensor, seed: int) -> Stepper:
        return _Broken([torch.optim.SGD(network.parameters(), self.lr)])


def test_tuning_survives_divergence(tmp_path: Path) -> None:
    heard: list[float] = []
    tune(PROBLEM, TASK, "wild", _Wild(), 5, 2, tmp_path, lambda number, loss: heard.append(loss))
    assert heard == [inf, inf] == [t.value for t in completed(study_of(PROBLEM, "wild", _Wild(), 5, tmp_path))]


def _times(*names: str) -> Times:
    return Times(dict.fromkeys(names, 0.25), dict.fromkeys(names, 2.0))


def test_table_of_constructed_histories() -> None:
    falling = [float(40 - i) for i in range(40)]  # the window is 2 steps
    outcomes = {
        "adam": Outcome(ADAM, [history(falling)]),
        "fast": Outcome(ADAM, [history([v / 2 for v in falling]), history([v / 2 - 1 for v in falling])]),
    }
    fast, adam = rows(outcomes, _times("adam", "fast"))
    assert (adam["competitor"], adam["final"], adam["steps"], adam["spread"]) == ("adam", 1.5, 40, 0.0)
    assert adam["shares"] == [37.5, 31.5, 21.5]
    assert fast["final"] == 0.25 and fast["spread"] == pytest.approx(0.5**0.5)
    assert fast["steps"] == 38 and fast["seconds"] == 9.5 and fast["ratio"] == 2.0  # mean of (3.5, 2.5)/2 and −1
    text = format_table([fast, adam], "adam").splitlines()
    assert text[0].count("|") == text[2].count("|") and "steps to adam" in text[0] and "0.25 ± 0.7071" in text[2]
    assert text[0].endswith("| test loss |") and text[2].endswith("| 0 |") and fast["test"] == {"test loss": 0.0}


def test_times_are_relative_to_the_reference() -> None:
    times = alternate(
        PROBLEM, TASK, {n: COMPETITORS[n] for n in ("adam", "locoprop")}, "adam", rounds=1, steps=2, settle=3
    )
    assert times.ratios["adam"] == 1.0 and times.ratios["locoprop"] > 1 and times.seconds["adam"] > 0


def test_command_runs_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "autoencoder-digits", "--competitors", "adam,sgd", "--steps", "20", "--length", "0.25"]
    words += ["--trials", "1", "--out", str(tmp_path)]
    assert main([*words, "--seeds", "1"]) == 0
    assert main([*words, "--seeds", "2"]) == 0
    out = capsys.readouterr().out
    assert "1 trials of 5 steps over 3 settings, then 2 seeds of 20 steps" in out
    result = json.loads((tmp_path / "result.json").read_text())
    runs = result["competitors"]["adam"]["runs"]
    assert len(runs) == 2 and len(runs[0]["losses"]) == len(runs[0]["seconds"]) == 20
    assert "train squared error" in runs[0]["measures"]
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 4
    assert (tmp_path / "curves.png").stat().st_size > 1000 and (tmp_path / "table.md").exists()


def test_a_diverged_run_is_kept_as_strict_json_and_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = {"competitors": {"sgd": {"settings": {"lr": 1e30, "momentum": 0.9, "clip": 1e30}}}}
    (tmp_path / "wild.json").write_text(json.dumps(wild))
    words = ["bench", "regression", "--steps", "20", "--settings", str(tmp_path / "wild.json"), "--out", str(tmp_path)]

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    assert main([*words, "--seeds", "1"]) == 0 == main([*words, "--seeds", "1"])
    (line,) = (tmp_path / "runs.jsonl").read_text().splitlines()
    losses = json.loads(line, parse_constant=refuse)["losses"]
    assert len(losses) == 20 and losses[0] > 0 and losses[-1] is None
    assert capsys.readouterr().err.count("sgd: seed 0, final loss inf") == 2


def test_a_share_shortens_the_schedule_and_settings_replace_tuning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "autoencoder-digits", "--competitors", "adam,sgd@0.5", "--steps", "20", "--length", "0.75"]
    assert main([*words, "--trials", "1", "--seeds", "1", "--out", str(tmp_path / "a")]) == 0
    first = json.loads((tmp_path / "a" / "result.json").read_text())
    assert "1 trials of 15/10 steps over 3 settings, then 1 seeds of 20/10 steps" in first["budget"]
    sgd = first["competitors"]["sgd@0.5"]
    again = replace(COMPETITORS["sgd"], **sgd["settings"])
    assert sgd["runs"][0]["losses"] == train(DigitsAutoencoder(steps=10), TASK, again, 0, 10).losses
    words = ["bench", "autoencoder-digits", "--steps", "20", "--seeds", "1", "--out", str(tmp_path / "b")]
    assert main([*words, "--settings", str(tmp_path / "a" / "result.json")]) == 0
    second = json.loads((tmp_path / "b" / "result.json").read_text())
    assert not (tmp_path / "b" / "studies.db").exists() and "trials" not in second["budget"]
    for name in ("adam", "sgd@0.5"):
        mine, other = (r["competitors"][name] for r in (first, second))
        assert (mine["settings"], mine["runs"][0]["losses"]) == (other["settings"], other["runs"][0]["losses"])
    capsys.readouterr()


def test_settings_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("{", "{}", '{"competitors": {"adam": {"settings": {"speed": 1}}}}', '{"competitors": []}', "1"):
        (tmp_path / "result.json").write_text(text)
        assert main(["bench", "narrow", "--settings", str(tmp_path / "result.json"), "--out", str(tmp_path)]) == 2
        assert "is no result of targetprop bench" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs a problem"),
        (["narrow", "--competitors", "adam@2"], "number in (0, 1], as in adam@0.25"),
        (["narrow", "--settings", "nowhere.json"], "--settings nowhere.json cannot be read"),
        (["autoencoder-digit"], "did you mean 'autoencoder-digits'"),
        (["narrow", "--competitors", "adamm"], "did you mean 'adam'"),
        (["narrow", "--trials", "0"], "--trials must be a whole number ≥ 1"),
        (["narrow", "--trials", "x"], "--trials must be a whole number"),
        (["narrow", "--condition", "3"], "targetprop bench has no option --condition; its options are"),
        (["autoencoder", "--root", "nowhere"], "--root nowhere is not a folder"),
        (["narrow", "--depth", "0"], "depth must be a whole number from 1"),
    ],
)
def test_command_says_what_is_wrong(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


def test_command_describes_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in (*PROBLEMS, *COMPETITORS))


def test_rows_are_read_as_a_recurrent_network_of_torch_does() -> None:
    problem = Recurrent(width=6)
    task, network = problem.load(), problem.network(0)
    assert isinstance(network, RowReader)
    expected = torch.nn.RNN(8, 6, batch_first=True)
    maps = {"ih": network.row, "hh": network.state}
    expected.load_state_dict(
        {f"{part}_{key}_l0": getattr(map_, part) for key, map_ in maps.items() for part in ("weight", "bias")}
    )
    x = task.x[:5]
    assert x.flatten(1).equal(Narrow().load().x[:5])
    torch.testing.assert_close(network(x), network.out(expected(x)[0][:, -1]))
    torch.testing.assert_close(network.state.weight @ network.state.weight.T, torch.eye(6))


def test_windows_of_characters_ask_for_the_next_one() -> None:
    problem = Characters(steps=2, batch=4, length=8, width=8, layers=1, heads=2, size=2000)
    task, text = problem.load(), library_text(2000)
    assert len(task.x) == 199 and len(task.test_x) == 23  # of 222 windows of 9 characters
    assert "".join(map(chr, task.x[1].tolist())) == text[9:17] and "".join(map(chr, task.y[1].tolist())) == text[10:18]
    first, again = (train(problem, task, COMPETITORS["kronecker"], 0, 2) for _ in range(2))
    assert first.losses == again.losses and first.losses[0] == pytest.approx(math.log(128), rel=0.02)
    network = problem.network(0)
    x = task.x[:1].clone()
    x[0, 5] = 65 + (x[0, 5] == 65)
    with torch.no_grad():
        moved = (network(x) - network(task.x[:1])).abs().amax(2)[0]
    assert bool((moved[:5] == 0).all()) and float(moved[5]) > 0  # a position sees none that follow it


@pytest.mark.parametrize("name", ["k-fac", "k-fac-adaptive", "locoprop"])
def test_rivals_for_sequences_refuse_other_networks(name: str) -> None:
    problem = Characters(length=8, width=8, layers=1, heads=2, size=2000)
    task = problem.load()
    with pytest.raises(CommandError, match="takes linear layers in a sequence alone"):
        COMPETITORS[name].start(problem.network(0), task.loss, task.x[:2], 0)


def test_convolutions_want_a_folder_and_refuse_the_same() -> None:
    with pytest.raises(CommandError, match="needs CIFAR-10: give the folder"):
        Convolutions().load()
    network = Convolutions().network(0)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(CommandError, match="takes linear layers in a sequence alone"):
        COMPETITORS["k-fac"].start(network, SoftmaxCrossEntropy(), torch.zeros(2, 3, 32, 32), 0)
