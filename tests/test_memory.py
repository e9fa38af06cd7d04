"""What does not fit in memory is named in one sentence; nothing else is taken for it."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from targetprop.experiments import epochs
from targetprop.experiments.main import main
from targetprop.experiments.memory import OutOfMemory, fitting

QUICK = "--device cpu --epochs 1 --data.limit 64 --method backprop --out run".split()
CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.fixture(autouse=True)
def inside_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


TOO_LARGE = {
    "train --network.widths 1000000000000": "network.widths 1000000000000 is too large",
    "train --network.widths 2000000000 2000000000": "network 'dense' does not fit in memory (tried to allocate ",
    "train --network.name lenet --network.hidden 2147483647": "network 'lenet' does not fit in memory",
    "train --network.name vgg --network.channels 2147483647 2147483647": "network 'vgg' does not fit in memory",
    "train --network.name resnet --network.width 2147483647": "network 'resnet' does not fit in memory",
    "train --network.name vit --network.expansion 2147483647": "network 'vit' does not fit in memory",
    "train --data.crop 1000000": "a step of network 'dense' with --batch_size 64 does not fit in memory",
    "bench narrow --width 2000000000": "narrow with these competitors does not fit in memory",
    "bench regression --inputs 2000000000": "regression with these competitors does not fit in memory",
    "check model.py:net --input 1000000000,1000000000": "net with --input 1000000000,1000000000 does not fit in memory",
    "check model.py:net --input 2000000000,2000000000,2000000000": "does not fit in memory",
}


@pytest.mark.parametrize("command", TOO_LARGE)
def test_too_large_numbers_end_with_one_sentence(capsys, command):
    Path("model.py").write_text("from torch import nn\nnet = nn.Sequential(nn.Linear(3, 2))\n")
    words = command.split()
    status = main([*words, *(QUICK if words[0] == "train" else ())])
    error = capsys.readouterr().err
    assert status == (2 if "too large" in error else 1)
    assert TOO_LARGE[command] in error and error.startswith("targetprop: ") and error.count("\n") == 1


def test_a_run_that_outgrows_the_memory_is_marked_as_failed(capsys):
    assert main(["train", *QUICK, "--data.crop", "1000000"]) == 1
    assert "the run in run failed in epoch 1: a step of network 'dense'" in capsys.readouterr().err
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["status"] == "failed" and "does not fit in memory" in summary["reason"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"),
        RuntimeError(f"{CPU} 256 bytes. Error code 12"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 256 bytes."),
        RuntimeError("Storage size calculation overflowed with sizes=[2147483647, 2147483647]"),
    ],
)
def test_every_allocator_is_understood(error):
    with pytest.raises(OutOfMemory, match="the net does not fit in memory") as caught, fitting("the net"):
        raise error
    assert caught.value.__cause__ is error
    assert ("tried to allocate 20.00 gib" in str(caught.value)) == isinstance(error, torch.OutOfMemoryError)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("can't allocate a port"), RuntimeError("mat1 and mat2"), ValueError(CPU), OSError(28, CPU)],
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, fitting("the net"):
        raise error
    assert caught.value is error


def test_other_errors_of_a_step_keep_their_traceback(monkeypatch):
    def fail(*_):
        raise RuntimeError("can't allocate a thread")

    monkeypatch.setattr(epochs, "run_epoch", fail)
    with pytest.raises(RuntimeError, match="a thread"):
        main(["train", *QUICK])
    assert "RuntimeError: can't" in json.loads(Path("run/summary.json").read_text())["reason"]


def test_pytorch_still_says_it_in_these_words():
    with pytest.raises(OutOfMemory), fitting("the map"):
        nn.Linear(10**9, 10**9)
    with pytest.raises(OutOfMemory), fitting("the map"):
        torch.empty(2**40, 2**40)
