"""The same seed gives the same run bit for bit, and ``--deterministic`` leaves PyTorch's settings as they were."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import targetprop as tp
from targetprop.experiments import epochs
from targetprop.experiments.deterministic import deterministic
from targetprop.experiments.errors import CommandError
from targetprop.experiments.main import main

SMALL = "train --network.widths 12 --data.limit 128 --batch_size 64 --epochs 1 --device cpu".split()


def weights(folder: Path, *words: str) -> dict[str, torch.Tensor]:
    assert main([*SMALL, *words, "--out", str(folder)]) == 0
    return load_file(folder / "checkpoint.safetensors")


@pytest.mark.parametrize("method", tp.METHODS)
def test_the_same_seed_gives_the_same_run_bit_for_bit(method: str, tmp_path) -> None:
    words = ["--method", method]
    one, two = weights(tmp_path / "1", *words, "--deterministic"), weights(tmp_path / "2", *words)
    assert all(torch.equal(one[name], two[name]) for name in one)  # on the CPU nothing else is chosen


def test_another_seed_gives_another_run(tmp_path) -> None:
    one, two = weights(tmp_path / "1", "--deterministic"), weights(tmp_path / "2", "--seed", "1")
    assert not all(torch.equal(one[name], two[name]) for name in one)


def test_the_setting_is_said_kept_and_put_back(tmp_path, monkeypatch, capsys) -> None:
    seen, run_epoch = [], epochs.run_epoch
    monkeypatch.setattr(
        epochs,
        "run_epoch",
        lambda *args: seen.append(torch.are_deterministic_algorithms_enabled()) or run_epoch(*args),
    )
    before = dict(os.environ)
    weights(tmp_path / "run", "--deterministic")
    assert "note: deterministic algorithms cost" in capsys.readouterr().err
    assert main(["train", "--resume", str(tmp_path / "run"), "--epochs", "2"]) == 0
    weights(tmp_path / "plain", "--deterministic=false")
    assert seen == [True, True, False]
    assert not torch.are_deterministic_algorithms_enabled() and dict(os.environ) == before


def test_an_operation_without_deterministic_algorithm_is_named() -> None:
    with pytest.raises(CommandError, match="--deterministic stops the run: put_ .*; leave the option out"):
        with deterministic(True):
            raise RuntimeError("put_ does not have a deterministic implementation, but you set\nmore")
    with pytest.raises(RuntimeError, match="something else"), deterministic(True):
        raise RuntimeError("something else")
    assert not torch.are_deterministic_algorithms_enabled()
