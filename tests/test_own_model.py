"""A model of the user's own on the command line: checked with any input, trained, resumed and inspected."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from runs import metrics, train
from targetprop.experiments.example_input import make_inputs
from targetprop.experiments.main import main
from targetprop.experiments.own_model import load_model
from targetprop.runs.checkpoint import load_checkpoint
from targetprop.runs.read import read_summary

FILE = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn
import torch.nn.functional as F


@dataclass
class Config:
    width: int = 8


class Net(nn.Module):
    def __init__(self, config: Config = Config()):
        super().__init__()
        self.one = nn.Conv2d(1, config.width, 3, padding=1)
        self.two = nn.Conv2d(config.width, 16, 3, padding=1)
        self.out = nn.Linear(64, 10)

    def forward(self, x):
        h = F.max_pool2d(F.relu(self.one(x)), 2)
        h = F.max_pool2d(F.relu(self.two(h)), 2)
        return self.out(F.dropout(h.flatten(1), 0.1, self.training))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm, self.o = nn.Linear(64, 64), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 10)
        self.b.weight = self.a.weight

    def forward(self, x):
        h = torch.tanh(self.a(x.flatten(1)))
        return self.o(torch.relu(self.norm(self.b(h))) + h)


class Faulty(Tied):
    def forward(self, x):
        if len(x) > 50:
            raise RuntimeError("no luck")
        return super().forward(x)


class Pair(Net):
    def forward(self, x):
        return super().forward(x), x


class Round(Tied):
    def forward(self, x):
        return super().forward(self.a(x.flatten(1)).round())


class Flat(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10]


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.ids, self.image, self.out = nn.Embedding(100, 8), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, image, ids, mask=None):
        e = self.ids(ids)
        if mask is not None:
            e = e.masked_fill(~mask.unsqueeze(-1), 0.0)
        return self.out(torch.tanh(self.image(image.flatten(1))) + e.mean(1))


def make(shape, classes):
    import beside
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], beside.width), nn.Tanh(),
                         nn.LazyLinear(classes))


def sized(shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1], 3))


def needs(width):
    return nn.Linear(width, 3)


net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
bag = nn.Sequential(nn.EmbeddingBag(20, 8), nn.Linear(8, 4))
parts = [nn.Flatten(), nn.Linear(64, 10)]
five = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
rgb = nn.Conv2d(3, 8, 3)
frozen = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)
meta = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, device="meta"))
"""


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside.py").write_text("width = 16\n")
    (tmp_path / "nets.py").write_text(FILE)
    return tmp_path / "nets.py"


def alike(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    return one == other


def sentence(capsys) -> str:
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 1, errors
    return errors


# Training


def test_a_model_of_a_file_learns(file) -> None:
    assert train("--network.name", "nets.py:Net", "--method", "l-drl", "--epochs", 2, "--optimizer.lr", 0.01,
                 "--out", "run") == 0  # fmt: skip
    assert read_summary(Path("run"))["test_accuracy"] > 0.7
    assert yaml.safe_load(Path("run/config.yaml").read_text())["network"] == {"name": f"{file}:Net", "layers": None}


@pytest.mark.parametrize("name", ["Net", "Tied", "make"])
def test_a_run_goes_on_bit_for_bit_from_another_folder(file, monkeypatch, name: str) -> None:
    words = ("--network.name", f"nets.py:{name}", "--data.limit", 100, "--log_every", 1)
    assert train(*words, "--epochs", 2, "--out", "whole") == 0
    assert train(*words, "--epochs", 1, "--out", "parts") == 0
    Path("away").mkdir()
    monkeypatch.chdir("away")
    assert train("--resume", "../parts", "--epochs", 2) == 0
    one, other = (load_checkpoint(Path("..") / run) for run in ("whole", "parts"))
    assert alike(one["model"], other["model"]) and alike(one["engine"], other["engine"])
    assert metrics(Path("../whole")) == metrics(Path("../parts"))
    assert main(["inspect", "../parts", "--samples", "2"]) == 0


def test_a_model_is_built_under_the_seed(file) -> None:
    def first(seed: int, run: str) -> torch.Tensor:
        words = ("--network.name", "nets.py:net", "--data.limit", 64, "--epochs", 1, "--optimizer.lr", 1e-30)
        assert train(*words, "--seed", seed, "--out", run) == 0
        return load_checkpoint(Path(run))["model"]["1.weight"]

    assert torch.equal(first(1, "a"), first(1, "b")) and not torch.equal(first(1, "c"), first(2, "d"))


def test_a_file_may_move_but_not_its_model_change(file, capsys) -> None:
    words = ("--network.name", "nets.py:net", "--data.limit", 64)
    assert train(*words, "--epochs", 1, "--out", "run") == 0
    Path("moved").mkdir()
    shutil.move("nets.py", "moved/nets.py")
    capsys.readouterr()
    assert train("--resume", "run", "--epochs", 2) == 2
    assert f"{file} is no file" in sentence(capsys)
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace(str(file), str(file.parent / "moved/nets.py")))
    assert train("--resume", "run", "--epochs", 2) == 0
    config.write_text(config.read_text().replace("nets.py:net", "nets.py:five"))
    capsys.readouterr()
    assert train("--resume", "run", "--epochs", 3) == 1
    assert "which has network.name nets.py:five where it was nets.py:net" in sentence(capsys)


WRONG = {
    "nets": "did you mean 'lenet'? A model of your own is FILE:NAME, such as nets.py:net",
    ":net": "names no model; write FILE:NAME",
    "missing.py:net": "missing.py is no file",
    "nets.py:nett": "has no 'nett'; did you mean 'net'",
    "nets.py:parts": "is a list; make it an nn.Module, such as nn.Sequential(*modules)",
    "nets.py:five": "returns shape (3, 5) for 3 samples; let it return a tensor of shape (n, 10)",
    "nets.py:rgb": "does not accept 3 samples of shape 1×8×8, the data's (RuntimeError: Given groups=1",
    "nets.py:Pair": "returns tuple for 3 samples; let it return a tensor of shape (n, 10)",
    "nets.py:Flat": "has no trainable parameter",
    "nets.py:frozen": "has no trainable parameter; call requires_grad_(True) on some",
    "nets.py:meta": "is on the meta device and holds no numbers; build it on the CPU",
    "nets.py:needs": "correct it, and give its parameters other than shape and classes a default",
    "nets.py:Net --network.widths 3": "no option --network.widths; its options are --network.name, --network.layers;",
    "nets.py:Round": "round has no derivative, so nothing below it would learn",
    "exits.py:net": "exits.py cannot be imported (SystemExit: 0); correct it",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_trained_is_refused_in_a_sentence(file, capsys, words: str) -> None:
    Path("exits.py").write_text("import sys\nsys.exit(0)\n")
    assert train("--network.name", *words.split(), "--out", "run") == 2
    assert WRONG[words] in sentence(capsys)
    assert not Path("run").exists()


def test_a_fault_that_a_batch_finds_ends_the_run_in_a_sentence(file, capsys) -> None:
    assert train("--network.name", "nets.py:Faulty", "--out", "run") == 1
    assert "the run in run failed in epoch 1: " in (told := sentence(capsys)) and told.endswith("no luck\n")
    assert read_summary(Path("run"))["status"] == "failed"


@pytest.mark.parametrize("name", ["Net", "Tied", "Round", "make"])
def test_learned_inverses_train_models_of_a_file(file, name: str) -> None:
    words = ("--network.name", f"nets.py:{name}", "--method", "dtp", "--optimizer.lr", 0.01)
    assert train(*words, "--epochs", 4, "--log_every", 1, "--out", "run") == 0
    losses = [line["loss"] for line in metrics(Path("run")) if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]


def test_the_help_tells_of_models_of_a_file(file, capsys) -> None:
    assert train("--help") == 0
    assert "FILE:NAME" in capsys.readouterr().out
    assert train("--network.name", "nets.py:Net", "--help") == 0
    assert f"{file}:Net" in "".join(capsys.readouterr().out.split())


def test_loading_leaves_the_path_as_it_was(file) -> None:
    import sys

    before = list(sys.path)
    load_model("nets.py:make", shape=(1, 8, 8), classes=10)
    with pytest.raises(Exception, match="needs"):
        load_model("nets.py:needs")
    assert sys.path == before


# Checking

CHECKED = {
    "bag": ["12:int20"],
    "Net": ["1,8,8"],
    "sized": ["3,4"],
    "Tokens": ["3,4", "16:int100"],
    "Tokens by keyword": ["ids=16:int", "image=3,4:float", "mask=16:bool"],
}


@pytest.mark.parametrize("case", CHECKED)
def test_check_takes_inputs_of_any_type(file, capsys, case: str) -> None:
    name, words = case.split()[0], CHECKED[case]
    assert main(["check", f"nets.py:{name}", "--input", *words]) == 0
    told = capsys.readouterr().out
    assert told.endswith("method l-drl, cut post-activation: supported\n")
    assert main(["check", f"nets.py:{name}", *(part for word in words for part in ("--input", word))]) == 0
    assert main(["check", f"nets.py:{name}", f"--input={' '.join(words)}"]) == 0
    assert capsys.readouterr().out == 2 * told


def test_check_names_the_layers_of_a_forward_of_ones_own(file, capsys) -> None:
    assert main(["check", "nets.py:Net", "--input", "1,8,8", "--method", "l-drl"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[:4]] == ["layer", "one", "two", "out"]


def test_check_says_what_it_gave_a_model_that_does_not_accept_it(file, capsys) -> None:
    assert main(["check", "nets.py:bag", "--input", "12"]) == 1
    assert "--input gave a sample of shape (12,) and type float; targetprop check --help" in capsys.readouterr().out


def test_inputs_are_what_was_said() -> None:
    image, ids, mask, label = make_inputs(["3,4", "500:int7", "5:bool", ":int"])
    assert image.shape == (2, 3, 4) and image.dtype == torch.float32
    assert ids.shape == (2, 500) and (int(ids.min()), int(ids.max())) == (0, 6)
    assert mask.tolist() == [[True, False, True, False, True], [False, True, False, True, False]]
    assert label.shape == (2,) and label.dtype == torch.int64 and int(label.max()) <= 1
    assert list(make_inputs(["b=2", "a=3:int"])) == ["b", "a"]


BAD = ["4,x", "0", "4:long", "4:int0", "4:bool7", "4:", "=4", "1x=4", "4,", ",4", "a=", "4.5", "-1", "a=b=4", "¹"]


@pytest.mark.parametrize("word", [*BAD, ""])
def test_wrong_inputs_are_told_in_a_sentence_with_a_right_one(file, capsys, word: str) -> None:
    assert main(["check", "nets.py:net", f"--input={word}"]) == 2
    assert (told := sentence(capsys)).endswith(f"got {word!r}\n") and "such as 1,28,28 or 12:int1000 or" in told


MIXED = {
    "3 a=3": "must be all in order or all by keyword, such as ids=12:int1000 mask=12:bool; got 3 a=3",
    "a=3 a=4": "has a 2 times; give it once, such as a=12:int1000",
    "9999999999": "has a number that is too large; give at most 2147483647, such as 12:int1000",
    "4:int9999999999": "has a number that is too large",
}


@pytest.mark.parametrize("words", MIXED)
def test_inputs_that_do_not_go_together_are_refused(file, capsys, words: str) -> None:
    assert main(["check", "nets.py:net", "--input", *words.split()]) == 2
    assert MIXED[words] in sentence(capsys)
