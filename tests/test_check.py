"""`tp.check` and ``targetprop check``: the table, and every refusal with the way out."""

import re
from dataclasses import astuple

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from targetprop.experiments.main import main


class Gate(nn.Module):
    """Differentiable, and unknown to the registry."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.linear(x).chunk(2, dim=-1)
        return a * b.sigmoid()


class Round(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.round()


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Opaque(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def rows(found: tp.Check) -> list[tuple]:
    return [astuple(row) for row in found.layers]


def test_every_layer_has_its_row() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), tp.Residual(nn.Linear(4, 4)), Gate(), nn.Linear(4, 3)
    )
    found = tp.check(model, torch.zeros(2, 2, 3))
    assert found.supported and found.refusal is None
    assert rows(found) == [
        ("1", ("linear",), (2, 3), (4,), "none needed", 0, True),
        ("3.branch.0", ("linear",), (4,), (4,), "mirrored", 4 * 4, True),
        ("4.linear", ("linear",), (4,), (4,), "mirrored", 4 * 8, True),
        ("5", ("linear",), (4,), (3,), "mirrored", 4 * 3, True),
    ]
    lines = str(found).splitlines()
    assert len(lines) == 6 and lines[0].startswith("layer") and "2×3" in lines[1]
    assert lines[-1] == "method iterated, cut post-activation: supported"
    found = tp.check(model, torch.zeros(2, 2, 3), "dtp")
    assert found.supported and found.refusal is None
    assert rows(found) == [
        ("1", ("Flatten", "Linear", "Tanh"), (2, 3), (4,), "none needed", 0, True),
        ("3", ("Residual",), (4,), (4,), "identity", 0, True),
        ("4", ("Gate",), (4,), (4,), "linearised, w=1, damping=0.1", 0, False),
        ("5", ("Linear",), (4,), (3,), "learned", 3 * 4 + 4, True),
    ]
    lines = str(found).splitlines()
    assert len(lines) == 6 and lines[0].startswith("layer  modules") and "2×3" in lines[1]
    assert lines[3].endswith("no: reads the forward weights")
    assert lines[-1] == "method dtp, cut post-activation: supported"
    iterated = tp.method("dtp", inversion=tp.InputSpace())
    assert tp.check(model, torch.zeros(2, 2, 3), iterated).layers[1].inverse == "identity, iterated"


@pytest.mark.parametrize("method", ["iterated", "dtp"])
def test_nothing_of_the_model_changes(method: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), Gate(), nn.Linear(4, 2))
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    assert tp.check(model, torch.ones(2, 4), method).supported
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and all(m.training for m in model.modules())
    assert torch.equal(state, torch.get_rng_state())


def test_dropout_that_drops_nothing_may_hide() -> None:
    block = nn.TransformerEncoderLayer(4, 1, dropout=0.0, batch_first=True)
    assert tp.check([nn.Linear(4, 4), block], torch.ones(2, 3, 4), "dtp").supported


def test_methods_and_cuts_can_be_chosen() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    assert tp.check(model, torch.ones(2, 4), "dtp", "pre-activation").layers[1].modules == ("Tanh", "Linear")
    chain = tp.TargetPropagation(
        model, nn.MSELoss(), example_input=torch.ones(2, 4), method=tp.method("l-drl", cut="pre-activation")
    ).chain
    assert [[call.name for call in layer.segment.calls] for layer in network.layers] == [["linear"], ["tanh", "linear"]]
    assert tp.check(model, torch.ones(2, 4), "fw-dtp").layers[1].inverse == "fixed"
    assert tp.check(model, torch.ones(2, 4), "ddtp-linear").layers[1].inverse == "direct feedback, learned"
    assert tp.check(model, torch.ones(2, 4), "drl").layers[1].local
    assert not tp.check(model, torch.ones(2, 4), "gait").layers[1].local
    regularised = tp.check(model, torch.ones(2, 4), "regularised").layers[1]
    assert regularised.inverse == "regularised: derivative of the layer" and not regularised.local
    assert str(tp.check(model, torch.ones(2, 4), "backprop")).endswith("supported")
    with pytest.raises(ValueError, match="unknown method 'nothing'"):
        tp.check(model, torch.ones(2, 4), "nothing")


def tied() -> nn.Sequential:
    a = nn.Linear(4, 4)
    return nn.Sequential(a, nn.Tanh(), a)


REFUSED = {
    "in place": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)),
        "layer 0: ReLU(inplace=True) would overwrite", "set inplace=False",
    ),
    "alpha dropout": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.AlphaDropout(0.1)), "layer 0: AlphaDropout draws", "use Dropout",
    ),
    "hidden dropout": (lambda: [nn.Linear(4, 4), Opaque()], "layer 1: Opaque holds Dropout", "register_replay"),
    "no derivative, no decoder": (
        lambda: [nn.Linear(4, 4), nn.Sequential(Round(), nn.Linear(4, 2))],
        "layer 1: Round cannot be inverted through its derivative", "register a decoder for it",
    ),
    "no derivative after parameters": (
        lambda: nn.Sequential(nn.Linear(4, 4), Round(), nn.Linear(4, 2)),
        "layer 0: Round lets no gradient through", "cut='pre-activation'",
    ),
    "unseen layers": (Gate, "cannot see the layers of Gate", "pass an nn.Sequential, or a list"),
    "shared": (tied, "layers 0 and 2 share a parameter", "parameters of their own"),
    "two inputs": (
        lambda: [nn.Linear(4, 4), nn.MultiheadAttention(4, 1)],
        "layer 1: MultiheadAttention.forward() missing 2", "wrap it in a module that takes one tensor",
    ),
    "tuple": (lambda: [nn.Linear(4, 4), Pair()], "layer 1: Pair returned tuple", "wrap it in a module"),
    "shape": (lambda: [nn.Linear(5, 4)], "does not accept example_input of shape (2, 4)", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_module_and_the_way_out(case: str) -> None:
    make, what, way_out = REFUSED[case]
    found = tp.check(make(), torch.ones(2, 4), "dtp")
    assert not found.supported and found.layers == ()
    assert what in found.refusal and way_out in found.refusal
    assert str(found) == f"method dtp, cut post-activation: refused\n{found.refusal}"


NO_DERIVATIVE = (
    "{}: round has no derivative, so nothing below it would learn; let an autograd function pass its changes"
)
REFUSED_BY_MIRRORS = {
    "no derivative, no decoder": NO_DERIVATIVE.format("1.0"),
    "no derivative after parameters": NO_DERIVATIVE.format("1"),
    "two inputs": "MultiheadAttention.forward() missing 2 required positional arguments",
    "shape": "does not accept example_input of shape (2, 4)",
}


@pytest.mark.parametrize("case", REFUSED)
def test_mirrors_refuse_what_has_no_derivative_and_what_cannot_be_called(case: str) -> None:
    found = tp.check(REFUSED[case][0](), torch.ones(2, 4))
    assert found.supported == (case not in REFUSED_BY_MIRRORS)
    if not found.supported:
        assert REFUSED_BY_MIRRORS[case] in found.refusal and found.layers == ()
        assert str(found) == f"method iterated, cut post-activation: refused\n{found.refusal}"


# The command

FILE = """
from torch import nn
import neighbour
net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
bad = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True))
parts = [nn.Linear(4, 3), nn.Linear(3, 2)]
def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
def broken():
    raise RuntimeError("no luck")
number = 3
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "neighbour.py").write_text("")
    (tmp_path / "nets.py").write_text(FILE)
    return tmp_path / "nets.py"


@pytest.mark.parametrize(("name", "shape"), [("net", "4"), ("parts", "4"), ("make", "2,2")])
def test_the_command_prints_the_table(file, capsys, name: str, shape: str) -> None:
    assert main(["check", f"{file}:{name}", "--input", shape]) == 0
    out = capsys.readouterr().out
    assert out.startswith("layer") and out.endswith("method iterated, cut post-activation: supported\n")
    assert main(["check", f"{file}:{name}", "--input", shape, "--method", "l-drl", "--cut", "pre-activation"]) == 0
    assert capsys.readouterr().out.endswith("method l-drl, cut pre-activation: supported\n")


def test_the_command_fails_on_a_refusal(file, capsys) -> None:
    assert main(["check", f"{file}:bad", "--input", "4", "--method", "dtp"]) == 1
    assert "set inplace=False" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "targetprop check FILE:NAME --input SHAPE needs a model of a Python file"),
        (["nets", "--input", "4"], "names no model; write FILE:NAME"),
        (["{file}:net"], "needs the shape of one sample, such as 1,28,28"),
        (
            ["{file}:net", "--input", "4,x"],
            r"must be whole numbers ≥ 1 .*, such as 1,28,28 .*; got '4,x'",
        ),
        (
            ["{file}:net", "--input", "0"],
            r"must be whole numbers ≥ 1 .*, such as 1,28,28 .*; got '0'",
        ),
        (["{file}:net", "--input", "4", "--method", "l-dlr"], "did you mean 'l-drl'"),
        (["{file}:net", "--input", "4", "--cut", "middle"], "--cut must be post-activation or pre-activation"),
        (["{file}:net", "--input", "4", "--inputs", "4"], "has no option --inputs; did you mean --input"),
        (["{file}:nett", "--input", "4"], "has no 'nett'; did you mean 'net'"),
        (["{file}:number", "--input", "4"], "number .* is int; it must be an nn.Module"),
        (["{file}:broken", "--input", "4"], r"fails \(RuntimeError: no luck\)"),
        (["missing.py:net", "--input", "4"], "missing.py is no file"),
        (["{folder}/wrong.py:net", "--input", "4"], r"cannot be imported \(NameError"),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(file, capsys, arguments: list[str], message: str) -> None:
    (file.parent / "wrong.py").write_text("net = nothing\n")
    filled = [a.format(file=file, folder=file.parent) for a in arguments]
    assert main(["check", *filled]) == 2
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 1
    assert re.search(message, errors), errors


def test_help_is_printed(capsys) -> None:
    assert main(["check", "--help"]) == 0
    assert "--input SHAPE" in capsys.readouterr().out
