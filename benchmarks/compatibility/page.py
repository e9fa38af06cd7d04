"""The page: tables of verdicts, and the sentences of those who refuse."""

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import groupby

import torch

from compatibility import losses, modules, optimisers, situations, utilities
from compatibility.case import Case
from compatibility.judge import METHODS, Verdict, judge

Found = dict[str, Verdict]  # by method
_INTRO = """# Compatibility

What the library does with every module, loss and utility of `torch.nn` and every optimiser of `torch.optim`, and in
situations beside. `make compatibility` measures all of it and writes this page (torch {torch}, CPU, float64 where
torch has it). `tp.check` agrees with the engine in every row.

A module stands in the middle of a small model in training mode: two linear layers below it, one above it. Buffers are
moved once a step, as by one ordinary pass, in every row that is not refused.

| word | `l-drl` | `least-squares` | `dtp` |
|---|---|---|---|
| exact | with `V = W`, all gradients are back-propagation's | its weights are solved for | undone without learning |
| approximate | | some take a gradient step | undone by what is learned |
| refused | a sentence says why | the same | the same |

Gradients are compared by cosine and ratio of norms, ≥ 0.999 both, for every parameter. The mirrors of `least-squares`
are set to the weights too; a gradient step is back-propagation's, and what is solved for has a positive product with
it. With `dtp`
the layer above the module has back-propagation's gradient; in the table of losses that is what *exact* says. A number
leads to a sentence [below](#sentences). *torch* means that the model does not run or train without the library either.

{count}
"""
_TABLES: dict[str, tuple[str, Callable[[], list[Case]]]] = {
    "Modules": ("module", modules.rows),
    "Losses": ("loss", losses.rows),
    "Utilities": ("utility", utilities.rows),
    "Optimisers": ("optimiser", optimisers.rows),
    "Situations": ("situation", situations.rows),
}
_ABOUT = {
    "Modules": "Classes of `torch.nn` by the groups of its documentation; those of losses stand in the next table.",
    "Losses": "Settings of one loss that end alike share a row.",
    "Utilities": "Of `torch.nn.utils`, `torch.nn.init` and `torch.func`.",
    "Optimisers": "Three steps: with `l-drl` parameters move as with back-propagation, with others they stay finite.",
    "Situations": "Kinds of values, modules, inputs and outputs.",
}


def all_rows() -> dict[str, list[Case]]:
    """List all rows by table."""
    return {title: rows() for title, (_, rows) in _TABLES.items()}


def measure(case: Case) -> Found:
    """Judge a row by every method."""
    return {method: judge(case, method) for method in METHODS}


class Sentences:
    """Numbers the sentences in the order in which they are met."""

    def __init__(self) -> None:
        """Start without any."""
        self.known: dict[str, int] = {}

    def cell(self, verdict: Verdict) -> str:
        """Write a verdict into a cell."""
        if verdict.word in ("refused", "torch", "FAULT"):
            return f"{verdict.word} ({self.known.setdefault(verdict.why, len(self.known) + 1)})"
        return f"{verdict.word}: {verdict.why}" if verdict.why else verdict.word

    def lines(self) -> list[str]:
        """List them."""
        return [f"{number}. {text}" for text, number in self.known.items()]


def cells(case: Case, found: Found) -> tuple[str, tuple[str, ...]]:
    """Write a row without numbers, as the test compares it: its name, and word and reason of every method."""
    return case.name, tuple(f"{found[method].word} {found[method].why}".strip() for method in METHODS)


def write(found: dict[str, list[tuple[Case, Found]]]) -> str:
    """Write the page.

    Args:
        found: rows and what was found, by table.

    Returns:
        The text.
    """
    sentences, parts = Sentences(), []
    for title, rows in found.items():
        parts += [f"## {title}", _ABOUT[title]]
        many = len({case.group for case, _ in rows}) > 1
        for group, own in groupby(rows, key=lambda row: row[0].group):
            named = [(case.name, tuple(map(sentences.cell, each.values()))) for case, each in own]
            parts += [f"### {group}"] if many else []
            parts += ["\n".join(_losses(named) if title == "Losses" else _table(_TABLES[title][0], named))]
        if title == "Modules":
            parts += ["### Without a row", *("\n".join(_reasons()),)]
    parts += ["## Sentences", "`middle` is the module in question.", "\n".join(sentences.lines())]
    return _INTRO.format(torch=torch.__version__.split("+")[0], count=_count(found)) + "\n" + "\n\n".join(parts) + "\n"


def _table(title: str, rows: Iterable[tuple[str, tuple[str, ...]]]) -> list[str]:
    head = [title, *(f"`{method}`" for method in METHODS)]
    return [_line(head), _line(["---"] * len(head)), *(_line([_code(name), *row]) for name, row in rows)]


def _losses(rows: Iterable[tuple[str, tuple[str, ...]]]) -> list[str]:
    joined: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name, row in rows:
        loss, _, setting = name.partition("; ")
        joined.setdefault((loss, row), []).append(setting)
    lines = [(loss, part, row) for (loss, row), settings in joined.items() for part in _short(settings)]
    head = ["loss", "setting", *(f"`{method}`" for method in METHODS)]
    return [_line(head), _line(["---"] * len(head)), *(_line([_code(a), b, *row]) for a, b, row in lines)]


def _short(settings: list[str]) -> list[str]:
    """Join settings into cells of few words."""
    found = [""]
    for setting in settings:
        longer = f"{found[-1]}; {setting}" if found[-1] else setting
        found = [*found[:-1], longer] if len(longer.split()) <= 12 else [*found, setting]
    return found


def _reasons() -> list[str]:
    return [
        _line(["class", "why"]),
        _line(["---"] * 2),
        *(_line([_code(n), why]) for n, why in modules.without_row().items()),
    ]


def _line(row: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def _code(name: str) -> str:
    """Set the name of a class or function as code, and leave words as they are."""
    first, *rest = name.split(", ", 1)
    plain = " " in first or not any(c.isupper() or c in "_.(" for c in first)
    return name if plain else ", ".join([f"`{first}`", *rest])


def _count(found: dict[str, list[tuple[Case, Found]]]) -> str:
    classes = {case.name.split(",")[0] for case, _ in found["Modules"]} & set(modules.public())
    named = {case.name.partition(";")[0] for case, _ in found["Losses"]} & set(modules.public())
    rows = [each for own in found.values() for _, each in own]
    text = f"{len(classes)} module classes and {len(named)} losses of `torch.nn`, {len(rows)} rows:"
    words = [f"- `{m}`: {_words(Counter(each[m].word for each in rows))}" for m in METHODS]
    return "\n".join([text, "", *words])


def _words(count: Counter[str]) -> str:
    return ", ".join(
        f"{count[word]} {word}" for word in ("exact", "approximate", "refused", "torch", "FAULT") if count[word]
    )
