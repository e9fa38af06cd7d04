"""Compiled stages: the same numbers as without, and one sentence where compilation fails."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from cases import DTYPE, rand
from targetprop.compiled import Stages
from targetprop.experiments import recorder
from targetprop.experiments import session as session_module
from targetprop.experiments.main import main

LOSS = nn.CrossEntropyLoss()
X, Y = rand(12, 6, seed=1), torch.arange(12) % 3
METHODS = {
    "iterated": tp.method("iterated"),
    "learned-inverse": tp.method("learned-inverse"),
    "dtp": tp.method("dtp"),
    "joint": tp.Method(propagation="joint", inversion=tp.InputSpace(steps=4)),
    "regularised": tp.method("regularised"),
    "backprop": tp.method("backprop"),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3)
    ).to(DTYPE)


def train(method: tp.Method, **settings) -> list[Tensor]:
    net = network()
    engine = tp.TargetPropagation(net, LOSS, example_input=X, method=method, seed=0, **settings)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for rows in (12, 12, 7):  # the last batch is smaller
        optimizer.zero_grad()
        engine.backward(X[:rows], Y[:rows])
        optimizer.step()
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", METHODS)
def test_compiled_steps_agree_with_eager_ones(name: str, backend: str) -> None:
    stages = Stages(backend)
    found, expected = train(METHODS[name], compile=stages), train(METHODS[name])
    assert stages.failure is None
    assert stages.calls > 0 or name in ("regularised", "backprop")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_compiler_that_fails_is_named_once_and_nothing_changes() -> None:
    def broken(graph, example):
        raise OSError("no C++ compiler was found\nand more lines")

    said: list[str] = []
    stages = Stages(broken, said.append)
    found, expected = train(METHODS["iterated"], compile=stages), train(METHODS["iterated"])
    assert len(said) == 1 and said[0].startswith("this model cannot be compiled here (")
    assert "no C++ compiler was found" in said[0] and "\n" not in said[0] and said[0].endswith("going on without")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_without_anybody_to_hear_it_is_a_warning() -> None:
    def broken(graph, example):
        raise OSError("no compiler")

    with pytest.warns(RuntimeWarning, match="cannot be compiled here"):
        assert torch.equal(Stages(broken).compile(lambda x: x + 1)(torch.ones(2)), torch.full((2,), 2.0))


def test_errors_of_the_function_itself_are_its_own() -> None:
    stages = Stages("eager")

    def wrong(x: Tensor) -> Tensor:
        return x @ torch.ones(5, 5)

    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="shapes cannot be multiplied|mat2"):
        stages.compile(wrong)(torch.ones(2, 3))
    assert stages.failure is None


def test_a_run_says_that_it_cannot_be_compiled_and_goes_on(tmp_path, monkeypatch, capsys) -> None:
    def broken(graph, example):
        raise OSError("no C++ compiler")

    monkeypatch.setattr(recorder, "draw_curves", lambda path: path)
    monkeypatch.setattr(session_module, "Stages", lambda say: Stages(broken, say))
    words = "train --network.widths 12 --data.limit 256 --epochs 1 --device cpu --compile --out".split()
    assert main([*words, str(tmp_path / "run")]) == 0
    assert "note: this model cannot be compiled here (OSError: no C++ compiler); going on" in capsys.readouterr().err
