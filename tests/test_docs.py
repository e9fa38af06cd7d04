"""The pages: links lead somewhere, Python blocks and commands run, and the README and its tables stay short."""

import re
import shlex
from pathlib import Path

import pytest

from targetprop.decoders import registry
from targetprop.experiments.main import main

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
TUTORIAL = sorted((ROOT / "docs" / "tutorial").glob("*.md"))
NUMBER = re.compile(r"(\d+(?:\.\d+)?)")


def cells(page: Path) -> list[str]:
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
    return [cell for row in rows for cell in re.split(r"(?<!\\)\|", row)]


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> list[str]:
    """What follows ``targetprop train`` in the indented blocks of a page."""
    text = page.read_text().replace("\\\n", " ")
    return re.findall(r"^ {4}targetprop train ?([^#\n]*)", text, flags=re.M)


def test_the_readme_and_all_cells_are_short() -> None:
    assert len(README.read_text().split()) <= 900
    assert [cell for cell in cells(README) if len(cell.split()) > 15] == []
    assert [cell for page in PAGES for cell in cells(page) if len(cell.split()) > 30] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_leads_to_every_page() -> None:
    # The home page, the tutorial and the reference are the site's own; its navigation has all (test_site.py).
    text = README.read_text()
    named = [name for name in NAMES if name.count("/") < 2 and name not in {"README.md", "docs/index.md"}]
    assert [name for name in named if f"({name})" not in text] == []


@pytest.mark.parametrize("page", [p for p in PAGES if p not in TUTORIAL], ids=[n for n in NAMES if "tutorial" not in n])
def test_python_blocks_run(page: Path, monkeypatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S)
    assert blocks or page != README
    # A block registers decoders for its own classes; the next one must find the registry as it was.
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    for block in blocks:
        exec(compile(block, str(page), "exec"), {})


@pytest.mark.parametrize("page", TUTORIAL, ids=[page.stem for page in TUTORIAL])
def test_the_tutorial_prints_what_it_shows(page: Path, capsys) -> None:
    blocks = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", page.read_text(), flags=re.S)
    assert sum(bool(shown) for _, shown in blocks) >= 1
    scope: dict[str, object] = {}
    for code, shown in blocks:
        exec(compile(code, str(page), "exec"), scope)
        printed, expected = [NUMBER.split(" ".join(text.split())) for text in (capsys.readouterr().out, shown)]
        assert printed[::2] == expected[::2]
        figures, quoted = [[float(n) for n in parts[1::2]] for parts in (printed, expected)]
        assert figures == pytest.approx(quoted, rel=0.05, abs=0.02)  # training amplifies how a processor rounds


def test_every_train_command_is_understood(monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    found = [command for page in PAGES for command in commands(page)]
    assert len(found) >= 10
    for command in found:
        if "runs/demo" not in command:  # a run that the reader has made
            assert main(["train", *shlex.split(command), "--print_config"]) == 0, command
    capsys.readouterr()
