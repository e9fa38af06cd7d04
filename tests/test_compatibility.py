"""The page of compatibility: a sample of its rows is measured again, and no class of torch is left out."""

import re
import sys
from functools import cache
from pathlib import Path

import pytest
from torch import optim

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "compatibility.md").read_text()
sys.path.append(str(ROOT / "benchmarks"))

from compatibility import modules, optimisers, page  # noqa: E402
from compatibility.case import Case  # noqa: E402

SAMPLE = {
    "Modules": ["Bilinear", "MaxUnpool2d", "LSTM", "InstanceNorm1d, affine, with statistics", "EmbeddingBag, mean"],
    "Losses": ["KLDivLoss; batchmean", "LinearCrossEntropyLoss; mean", "MSELoss; none", "GaussianNLLLoss; none"],
    "Utilities": [
        "convert_conv2d_weight_memory_format",
        "rnn.pad_sequence, unpad_sequence",
        "parameters_to_vector, vector_to_parameters",
        "torch.func.vmap",
    ],
    "Optimisers": ["SparseAdam"],
    "Situations": [
        "written in place: a view of zeros",
        "complex numbers: rotary embedding",
        "complex64",
        "inference mode",
        "full backward hooks",
        "lazy modules, before their first call",
        "quantised: dynamic",
        "quantised: prepared for training",
        "a sparse constant",
        "gradients inside the forward pass",
        "gradient checkpointing, reentrant",
    ],
}


@cache
def rows() -> dict[str, dict[str, Case]]:
    return {title: {case.name: case for case in cases} for title, cases in page.all_rows().items()}


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def line(title: str, name: str) -> list[str]:
    """The cells of a row, with the sentences in the place of their numbers."""
    sentences = dict(re.findall(r"^(\d+)\. (.*)$", section("Sentences"), flags=re.M))
    first, _, setting = name.partition("; ")
    for row in section(title).splitlines():
        own = row.replace("`", "").removeprefix("| ").removesuffix(" |").split(" | ")
        if own[0] == (first if title == "Losses" else name) and (
            title != "Losses" or setting in re.split("; ", own[1])
        ):
            return [re.sub(r" \((\d+)\)$", lambda m: f": {sentences[m[1]]}", cell) for cell in own[-3:]]
    raise AssertionError(f"{name} is not in the table {title}")


@pytest.mark.parametrize(("title", "name"), [(title, name) for title, names in SAMPLE.items() for name in names])
def test_a_row_is_what_is_measured(title: str, name: str) -> None:
    found = page.measure(rows()[title][name])
    assert [f"{v.word}: {v.why}".removesuffix(": ") for v in found.values()] == line(title, name)


def test_every_class_and_every_row_is_in_the_page() -> None:
    assert len(modules.public()) >= 130
    assert [name for name in modules.public() if not re.search(rf"^\| `{name}`[ ,]", PAGE, flags=re.M)] == []
    kinds = [n for n, c in vars(optim).items() if isinstance(c, type) and issubclass(c, optim.Optimizer)]
    assert set(optimisers.public()) == set(kinds) - {"Optimizer"}
    for title, own in rows().items():
        for name in own:
            line(title, name)


def test_nothing_is_at_fault_and_cells_are_short() -> None:
    assert "FAULT" not in PAGE
    cells = [cell for row in PAGE.splitlines() if row.startswith("|") for cell in row.split("|")]
    assert [cell for cell in cells if len(cell.split()) > 15] == []


def test_a_wrong_gradient_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle sees mirrors that are not the weights."""
    from compatibility import judge

    monkeypatch.setattr(judge, "make_exact", lambda engine, side: None)
    assert judge.judge(rows()["Modules"]["Linear"], "l-drl").word == "FAULT"
