"""Puts wrong values at every place of a configuration file, damages the file, and asks for the run.

Every file must be refused in a sentence that names the option or the file, or give a configuration that prints, reads
back as the same, and trains or ends in a sentence.
"""

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from reliability.damage import add, ask, damages
from reliability.runs import RECIPES, fresh
from targetprop.experiments.parser import build_config, read_options

SHARE, FAST_SHARE, FLIPS = 4, 101, 60
HUGE = f"1{'0' * 30}"
VALUES = ["null", "true", "-1", "0", "1", "0.5", HUGE, "1.0e+300", "-1.0e+300", "1.0e-300",
          ".inf", "-.inf", ".nan", "''", "x", "'\\0'", '"\\ud800"', "[]", "[1]", "[[1]]", "[0, -1]", "{}", "{a: 1}",
          "2026-11-24", "2026-13-45", "!!binary aGVsbG8=", "!!set {a, b}", "!!python/object:os.system {}", "*a", "&a b",
          "1e1000", "0x10", "'1 2 3'", "--epochs", "9" * 5000]  # fmt: skip
_RECIPES = ("krylov", "augmented")


def measure(fast: bool) -> dict[str, Any]:
    """Ask for every wrong file; returns the figures."""
    figures: dict[str, Any] = {"failures": []}
    with TemporaryDirectory() as name:
        for recipe in _RECIPES:
            for place, text in islice(files(recipe), 0, None, FAST_SHARE if fast else SHARE):
                one_file(figures, f"{recipe}, {place}", text, Path(name))
    return figures


def files(recipe: str) -> Iterator[tuple[str, bytes]]:
    """Make wrong configuration files from the right one of a recipe."""
    right = build_config(read_options(RECIPES[recipe]).values).to_yaml()
    yield from damages(right.encode(), random.Random(recipe), FLIPS)
    content = yaml.safe_load(right)
    for name, value in content.items():
        for inner in value if isinstance(value, dict) else (None,):
            marked = _marked(content, name, inner)
            for wrong in VALUES:
                yield f"{name}.{inner} {wrong[:20]}".replace(".None", ""), marked.replace("MARK", wrong).encode()
            yield f"{name}.{inner} twice", (marked.replace("MARK", "1") + right).encode()


def _marked(content: dict[str, Any], name: str, inner: str | None) -> str:
    """Write a file with MARK in the place of one value."""
    marked: dict[str, Any] = dict(content)
    marked[name] = "MARK" if inner is None else {**content[name], inner: "MARK"}
    return yaml.safe_dump(marked, sort_keys=False)


def one_file(figures: dict[str, Any], place: str, text: bytes, folder: Path) -> None:
    """Ask for a run as a file describes it."""
    path = folder / "config.yaml"
    path.write_bytes(text)
    answer = ask("train", "--config", path, "--print_config")
    if answer.status is None:
        return add(figures, ["crashed"], f"{place}: {answer.error}")
    if answer.status:
        return add(figures, ["refused"], None if answer.is_sentence else f"{place}: said {answer.error!r}")
    answer = ask("train", "--config", path, "--device", "cpu", "--epochs", "1", "--out", fresh(folder / "run"))
    if answer.status is None:
        return add(figures, ["crashed"], f"{place}, trained: {answer.error}")
    if answer.status:
        said = answer.error.splitlines()[-1:] or [""]
        clear = said[0].startswith("targetprop: ") and "Traceback" not in answer.error
        return add(figures, ["accepted, then refused"], None if clear else f"{place}, trained: {answer.error!r}")
    return add(figures, ["accepted and trained"])
