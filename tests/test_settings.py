"""Every setting of the library refuses what is no value of its kind, by its name."""

import dataclasses
import math
import typing
from dataclasses import dataclass

import pytest
from torch import nn

import targetprop as tp
from targetprop.decoders import Objective
from targetprop.diagnostics.dense_inverse import DenseInverse
from targetprop.inversion import RULES
from targetprop.output_target import OUTPUT_TARGETS
from targetprop.settings import check_types
from targetprop.updates import UPDATES

NAN, INF = float("nan"), float("inf")
BAD = {
    float: (NAN, INF, -1.0, "0.1", None, True),
    int: (NAN, -1, 1.5, "1", None, True),
    bool: (1, "yes", None),
}


def objectives(kind: type = Objective) -> list[type]:
    found = [kind] if not getattr(kind, "__abstractmethods__", None) else []
    return [*found, *(one for child in kind.__subclasses__() for one in objectives(child))]


CLASSES = {
    kind.__name__: kind
    for kind in (
        *objectives(), *RULES.values(), *UPDATES.values(), *OUTPUT_TARGETS.values(),
        tp.Influence, tp.Method, DenseInverse,
    )
    if kind.__module__.startswith("targetprop.") and ".claims." not in kind.__module__
}  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_no_field_takes_what_it_cannot_be(kind):
    hints = typing.get_type_hints(kind)
    kind()
    for field in dataclasses.fields(kind):
        for bad in BAD.get(hints[field.name], ("nonsense", NAN, None)):
            if bad == field.default == INF or (hints[field.name] is str and bad == "nonsense"):
                continue
            with pytest.raises(ValueError, match=rf"\b{field.name}\b"):
                kind(**{field.name: bad})


def test_all_kinds_of_settings_were_looked_at():
    assert {"WeightMirror", "Ridge", "Krylov", "OutputSpace", "LeastSquares", "LabelTarget"} <= set(CLASSES)
    assert len(CLASSES) >= 24


def test_a_users_own_settings_are_checked_as_far_as_their_annotations_say_something():
    @dataclass(frozen=True)
    class Mine:
        length: float = 1.0
        bound: float = math.inf
        either: int | None = None
        names: tuple[str, ...] = ()
        loss: nn.Module = dataclasses.field(default_factory=nn.MSELoss)

        def __post_init__(self) -> None:
            check_types(self, "my ")

    assert Mine(either=3, length=2).length == 2
    for bad, message in (
        ({"length": NAN}, "my length must be a finite number; got nan"),
        ({"bound": NAN}, "my bound must be a number; got nan"),
        ({"loss": 3}, "my loss must be a Module; got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            Mine(**bad)
