"""What Markdown needs that docstrings leave out: fences around doctests, and links on the names of the reference."""

import re
from pathlib import Path
from typing import Any

import griffe

REFERENCE = Path(__file__).parents[1] / "reference"
DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1(?! *$).+)*", flags=re.M)
NAME = re.compile(r"(?<![`\[])`([\w.]+)`(?!`)")


class Markdown(griffe.Extension):
    """Rewrites every docstring before it is parsed into sections."""

    def __init__(self) -> None:
        """Find what the pages of the reference document."""
        text = "".join(page.read_text() for page in REFERENCE.glob("*.md"))
        self.known = {path.rpartition(".")[2]: path for path in re.findall(r"^::: (\S+)", text, flags=re.M)}

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a class, function or module, if it has one."""
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(_fenced, NAME.sub(self._linked, obj.docstring.value))

    def _linked(self, match: re.Match[str]) -> str:
        name = match[1]
        return f"[`{name}`][{self.known[name]}]" if name in self.known else match[0]


def _fenced(match: re.Match[str]) -> str:
    return f"{match[1]}```pycon\n{match[0]}\n{match[1]}```"
