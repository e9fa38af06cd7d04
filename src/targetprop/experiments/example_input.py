"""Inputs made up from what is said of each: its shape, its type and its keyword.

>>> made = make_inputs(["ids=12:int20", "mask=12:bool"])
>>> {name: (tuple(t.shape), t.dtype) for name, t in made.items()}
{'ids': ((2, 12), torch.int64), 'mask': ((2, 12), torch.bool)}
>>> make_inputs(["3,8,8"]).shape
torch.Size([2, 3, 8, 8])
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, cast

import torch
from torch import Tensor

_FORM = re.compile(r"(?:(\w+)=)?(\d{1,18}(?:,\d{1,18})*)?(?::(float|int|bool)(?:(?<=int)(\d{1,18}))?)?")
_SAMPLES, _LARGEST, _LONGEST = 2, 2**31 - 1, 60  # samples, a number, a text in a message
_MEANING = (
    "whole numbers ≥ 1 with commas between them, and a type if it is not float, such as 1,28,28 or 12:int1000 or"
    " mask=12:bool"
)


@dataclass(frozen=True)
class InputForm:
    """What is said of one input.

    Attributes:
        name: its keyword; empty if it has none.
        sizes: the shape of one sample.
        kind: the type of its values.
        below: the whole number that those of kind "int" stay below.
    """

    name: str
    sizes: tuple[int, ...]
    kind: Literal["float", "int", "bool"] = "float"
    below: int = 2

    def make(self, generator: torch.Generator) -> Tensor:
        """Draw values; truth values take turns, so that no sample's are all alike."""
        shape = (_SAMPLES, *self.sizes)
        if self.kind == "int":
            return torch.randint(self.below, shape, generator=generator)
        if self.kind == "bool":
            return (torch.arange(prod(shape)) % 2 == 0).view(shape)
        return torch.randn(shape, generator=generator)

    def __str__(self) -> str:
        """Say what a sample is like."""
        name = f"{self.name} of " if self.name else ""
        below = f" below {self.below}" if self.kind == "int" else ""
        return f"{name}shape {self.sizes} and type {self.kind}{below}"


def read_forms(words: Sequence[str]) -> list[InputForm]:
    """Read one text per input; a wrong one raises `ValueError`."""
    forms = [_read_form(word) for word in words or [""]]
    names = [form.name for form in forms if form.name]
    if names and len(names) < len(forms):
        raise ValueError(
            f"input must be all in order or all by keyword, such as ids=12:int1000 mask=12:bool; got"
            f" {_short(' '.join(words))}"
        )
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"input has {name} {names.count(name)} times; give it once, such as {name}=12:int1000")
    return forms


def make_inputs(words: Sequence[str]) -> Any:
    """Make a tensor, a tuple of several, or a dictionary by keyword."""
    forms, generator = read_forms(words), torch.Generator().manual_seed(0)
    tensors = [form.make(generator) for form in forms]
    if forms[0].name:
        return {form.name: tensor for form, tensor in zip(forms, tensors, strict=True)}
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _read_form(word: str) -> InputForm:
    found = _FORM.fullmatch(word)
    name, sizes, kind, below = found.groups() if found else ("", None, None, None)
    numbers = [int(size) for size in (sizes or "").split(",") if size]
    limit = int(below or 2)
    good = found and (numbers or kind) and all(numbers) and limit and (not name or name.isidentifier())
    if not good:
        raise ValueError(f"input must be {_MEANING}; got {_short(word)!r}")
    if max([*numbers, limit]) > _LARGEST:
        raise ValueError(f"input {word} has a number that is too large; give at most {_LARGEST}, such as 12:int1000")
    return InputForm(name or "", tuple(numbers), cast(Any, kind or "float"), limit)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
