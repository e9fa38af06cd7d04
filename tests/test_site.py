"""The site: its navigation and its reference have everything, headings are in order, and images say what they show."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

import targetprop
from targetprop import diagnostics

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NAMES = [str(page.relative_to(DOCS)) for page in PAGES]


def leaves(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [leaf for value in (entry.values() if isinstance(entry, dict) else entry) for leaf in leaves(value)]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


def test_the_navigation_has_every_page_once() -> None:
    examples = [f"examples/{script.stem}.md" for script in (ROOT / "examples").glob("*.py")]
    nav = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(nav) == sorted([*NAMES, *examples, "CONTRIBUTING.md", "CHANGELOG.md"])


def test_the_reference_has_every_public_name_once() -> None:
    text = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    found = re.findall(r"^::: targetprop\.(\S+)$", text, flags=re.M)
    checks = {"check": "check.check", "Check": "check.Check"}  # named after the module that they live in
    names = [checks.get(name, name) for name in targetprop.__all__]
    others = ["decoders.Learned", "testing.InversionContract", "testing.DecoderContract"]
    others += ["lightning.TargetPropagationModule", *(f"diagnostics.{name}" for name in diagnostics.__all__)]
    assert sorted(found) == sorted([*names, *others])


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_headings_are_in_order(page: Path) -> None:
    levels = [len(marks) for marks in re.findall(r"^(#+) ", prose(page), flags=re.M)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in zip(levels, levels[1:], strict=False))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_images_say_what_they_show(page: Path) -> None:
    assert all(len(alt.split()) >= 3 for alt in re.findall(r"!\[(.*?)\]\(", page.read_text()))


def test_the_diagrams_are_those_that_the_script_draws(tmp_path) -> None:
    script = runpy.run_path(str(DOCS / "scripts" / "diagrams.py"))
    script["Drawing"].write.__globals__["IMAGES"] = tmp_path
    script["idea"]()
    script["architecture"]()
    drawn = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert drawn == {file.name: file.read_text() for file in (DOCS / "images").glob("*.svg")}
