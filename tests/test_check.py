"""`tp.check` and ``targetprop check``: the table, and every refusal with the way out."""

import re
from dataclasses import astuple

import pytest
import torch
from torch import Tensor, nn

import targetprop as tp
from targetprop.experiments.main import main


class Gate(nn.Module):
    """Half of what a map makes gates the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.linear(x).chunk(2, dim=-1)
        return a * b.sigmoid()


class Round(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.round()


class Classes(nn.Module):
    """Returns no number that a loss could be differentiated in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).argmax(1)


class Normalised(nn.Module):
    """Has no finite value at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x / x.norm(dim=1, keepdim=True))


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
    assert lines[-1] == "method l-drl, cut post-activation: supported"
    found = tp.check(model, torch.zeros(2, 2, 3), "dtp")
    assert found.supported and found.refusal is None
    assert rows(found) == [
        ("1", ("linear",), (2, 3), (4,), "none needed", 0, True),
        ("3.branch.0", ("linear",), (4,), (4,), "affine on the identity, learned", 4 * 4 + 4, True),
        ("4.linear", ("linear",), (4,), (4,), "learned", 8 * 4 + 4, True),
        ("5", ("linear",), (4,), (3,), "learned", 3 * 4 + 4, True),
    ]
    lines = str(found).splitlines()
    assert len(lines) == 6 and lines[0].startswith("layer       modules") and "2×3" in lines[1]
    assert lines[-1] == "method dtp, cut post-activation: supported"


@pytest.mark.parametrize("method", tp.METHODS)
def test_nothing_of_the_model_changes(method: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), Gate(), nn.Linear(4, 2))
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    model[0].bias.grad = torch.ones(4)
    steps: list[Tensor] = []
    model[4].weight.register_post_accumulate_grad_hook(steps.append)
    found = tp.check(model, torch.ones(2, 4), method)
    assert found.supported, found.refusal
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["0.bias"]
    assert torch.equal(model[0].bias.grad, torch.ones(4)) and all(m.training for m in model.modules())
    assert torch.equal(state, torch.get_rng_state()) and steps == []
    model(torch.ones(2, 4)).sum().backward()
    assert len(steps) == 1


def test_methods_and_cuts_can_be_chosen() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))

    def inverse(method: str | tp.Method) -> tuple[str, bool]:
        layer = tp.check(model, torch.ones(2, 4), method).layers[1]
        return layer.inverse, layer.local

    found = tp.check(model, torch.ones(2, 4), "dtp", "pre-activation")
    assert found.cut == "pre-activation" and [layer.output_shape for layer in found.layers] == [(4,), (2,)]
    for method in ("l-drl", "dtp"):
        network = tp.TargetPropagation(
            model, nn.MSELoss(), example_input=torch.ones(2, 4), method=tp.method(method, cut="pre-activation")
        ).network
        names = [[call.name for call in layer.segment.calls] for layer in network.layers]
        assert names == [["linear"], ["tanh", "linear"]]
    assert inverse("l-drl") == ("mirrored", True)
    assert inverse("fw-dtp") == ("fixed", True)
    assert inverse(tp.method("fw-dtp", inversion=tp.InputSpace())) == ("fixed, iterated", True)
    assert inverse("dtp") == ("learned", True)
    assert inverse("ddtp-linear") == ("direct feedback, learned", False)
    assert inverse("drl") == ("learned", False)
    assert inverse("gait") == ("linearised, w=1, damping=0", False)
    assert inverse("regularised") == ("regularised: derivative of the layer", False)
    assert str(tp.check(model, torch.ones(2, 4), "backprop")).endswith("supported")
    with pytest.raises(ValueError, match="unknown method 'nothing'"):
        tp.check(model, torch.ones(2, 4), "nothing")


@pytest.mark.parametrize("method", tp.METHODS)
def test_values_of_the_example_do_not_matter(method: str) -> None:
    assert rows(tp.check(Normalised(), torch.zeros(2, 4), method)) == rows(
        tp.check(Normalised(), torch.ones(2, 4), method)
    )


EVERY = list(tp.METHODS)
DERIVATIVES = [name for name in EVERY if tp.method(name).derivatives and name != "backprop"]
LEARNED = [name for name in EVERY if name not in (*DERIVATIVES, "backprop")]
FLAT = "{}: round has no derivative, so nothing below it would learn; let an autograd function pass its changes"
REFUSED = {
    "two inputs": (
        lambda: [nn.Linear(4, 4), nn.MultiheadAttention(4, 1)],
        dict.fromkeys(EVERY, "MultiheadAttention.forward() missing 2 required positional arguments"),
    ),
    "shape": (lambda: [nn.Linear(5, 4)], dict.fromkeys(EVERY, "of shape (2, 4) and type float32: mat1 and mat2")),
    "nothing to train": (nn.ReLU, dict.fromkeys(EVERY, "has no trainable parameter; give it layers to train")),
    "frozen": (
        lambda: nn.Linear(4, 3).requires_grad_(False),
        dict.fromkeys(EVERY, "has no trainable parameter; call requires_grad_(True) on those to train"),
    ),
    "classes": (Classes, dict.fromkeys(EVERY, "the model has no trainable parameter")),
    "no derivative": (
        lambda: nn.Sequential(nn.Linear(4, 4), Round(), nn.Linear(4, 2)), dict.fromkeys(DERIVATIVES, FLAT.format("1")),
    ),
    "no derivative, in a list": (
        lambda: [nn.Linear(4, 4), nn.Sequential(Round(), nn.Linear(4, 2))],
        dict.fromkeys(DERIVATIVES, FLAT.format("1.0")),
    ),
    "no derivative after parameters": (
        lambda: [nn.Sequential(nn.Linear(4, 4), Round()), nn.Linear(4, 2)],
        dict.fromkeys(DERIVATIVES, FLAT.format("0.1"))
        | dict.fromkeys(LEARNED, "layer 0: 0.1 lets no gradient through to the parameters before it; let the layer"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_module_and_the_way_out(case: str) -> None:
    make, refusals = REFUSED[case]
    for method in EVERY:
        found = tp.check(make(), torch.ones(2, 4), method)
        assert found.supported == (method not in refusals), method
        if not found.supported:
            assert refusals[method] in found.refusal and found.layers == (), method
            assert str(found) == f"method {method}, cut {tp.method(method).cut}: refused\n{found.refusal}"


# The command

FILE = """
from torch import nn
import neighbour
net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
class Round(nn.Module):
    def forward(self, x):
        return x.round()
bad = nn.Sequential(nn.Linear(4, 3), Round(), nn.Linear(3, 2))
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
    assert out.startswith("layer") and out.endswith("method l-drl, cut post-activation: supported\n")
    assert main(["check", f"{file}:{name}", "--input", shape, "--method", "l-drl", "--cut", "pre-activation"]) == 0
    assert capsys.readouterr().out.endswith("method l-drl, cut pre-activation: supported\n")


def test_the_command_fails_on_a_refusal(file, capsys) -> None:
    assert main(["check", f"{file}:bad", "--input", "4"]) == 1
    assert "let an autograd function pass its changes" in capsys.readouterr().out
    assert main(["check", f"{file}:bad", "--input", "4", "--method", "dtp"]) == 0


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
