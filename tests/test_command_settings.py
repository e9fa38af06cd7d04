"""Every setting of the command line and of the bench refuses what it cannot be, by its name."""

import dataclasses
import math
import typing
from dataclasses import dataclass
from types import NoneType

import pytest

import targetprop as tp
from targetprop.bench.command import Request
from targetprop.bench.competitors import COMPETITORS, Range
from targetprop.bench.entry import Entry
from targetprop.bench.problems import PROBLEMS, Narrow, Regression
from targetprop.experiments.config import LoopSettings, RunConfig
from targetprop.experiments.data import SOURCES, Digits
from targetprop.experiments.data.augment import Augmentation
from targetprop.experiments.main import main
from targetprop.experiments.networks import MOST_LAYERS, NETWORKS, Dense, ResNet, ViT
from targetprop.experiments.optimizers import OPTIMIZERS, Adam
from targetprop.experiments.schedules import SCHEDULES
from targetprop.settings import check_ranges, check_types

NAN, INF = float("nan"), float("inf")
BAD = {
    float: (NAN, INF, -INF, -1.0, "0.1", None, True, [0.1]),
    int: (NAN, INF, -1, 1.5, "1", None, True, [1]),
    bool: (1, "yes", None),
    str: (3, None, True),
    list[int]: (3, None, "8", [-1], [0], [1.5], [NAN], ["8"], [True], [None], (8,)),
    int | None: (NAN, -1, 1.5, "1", True),
    str | None: (3, True),
}
OTHER = ("nonsense", NAN, None, 3)  # for choices and settings within settings
OWN = {  # what a class needs to be made at all
    Range: {"low": 0.1, "high": 0.5},
    Entry: {"name": "adam"},
    Request: {"problem": "narrow"},
    RunConfig: {
        "method": tp.method("dtp"), "data": Digits(), "network": Dense(), "optimizer": Adam(), "loop": LoopSettings(),
    },
}  # fmt: skip
CLASSES = {
    f"{kind.__module__.split('.')[1]}-{kind.__name__}": kind
    for kind in (
        *SOURCES.values(), *NETWORKS.values(), *OPTIMIZERS.values(), *SCHEDULES.values(), *PROBLEMS.values(),
        *map(type, COMPETITORS.values()), LoopSettings, RunConfig, Augmentation, Range, Entry, Request,
    )
}  # fmt: skip
MAY_BE_INFINITE = {(LoopSettings, "checkpoint_minutes")}
MAY_BE_ZERO = {
    "seed", "checkpoint_minutes", "weight_decay", "momentum", "warmup", "crop", "validation", "hidden of Regression",
    "data_seed", "lr of a competitor", "clip", "average", "damping", "decay", "least", "gamma", "bias_rate",
}  # fmt: skip
UNTYPED = ("entries", "settings")  # made by the command itself


def name_of(kind: type, name: str) -> str:
    if kind in map(type, COMPETITORS.values()) and name == "lr":
        return "lr of a competitor"
    return "hidden of Regression" if (kind, name) == (Regression, "hidden") else name


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_no_field_takes_what_it_cannot_be(kind):
    hints, own = typing.get_type_hints(kind), OWN.get(kind, {})
    kind(**own)
    for field in dataclasses.fields(kind):
        for bad in () if field.name in UNTYPED else BAD.get(hints[field.name], OTHER):
            if bad == INF and (kind, field.name) in MAY_BE_INFINITE:
                assert kind(**own | {field.name: bad})
                continue
            with pytest.raises(ValueError, match=rf"\b{field.name}\b.*; got ") as caught:
                kind(**own | {field.name: bad})
            assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_zero_is_taken_only_where_it_means_something(kind):
    hints, own = typing.get_type_hints(kind), OWN.get(kind, {})
    for field in dataclasses.fields(kind):
        if not {int, float} & {hints[field.name], *(set(typing.get_args(hints[field.name])) - {NoneType})}:
            continue
        if typing.get_origin(hints[field.name]) is list:
            continue
        if name_of(kind, field.name) in MAY_BE_ZERO:
            zero = {field.name: 0} | ({"nesterov": False} if field.name == "momentum" and "nesterov" in hints else {})
            assert getattr(kind(**own | zero), field.name) == 0
        else:
            with pytest.raises(ValueError, match=rf"\b{field.name}\b"):
                kind(**own | {field.name: 0})


def test_all_kinds_of_settings_were_looked_at():
    names = {"Digits", "Folder", "Dense", "ViT", "Sgd", "Cosine", "Regression", "Kfac", "TargetProp", "Muon", "Range"}
    assert names <= {kind.__name__ for kind in CLASSES.values()} and len(CLASSES) >= 34


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViT(depth=10**9), f"ask for {MOST_LAYERS} or fewer"),
        (lambda: ResNet(blocks=[1, 10**9]), f"ask for {MOST_LAYERS} or fewer"),
        (lambda: Narrow(depth=10**9), f"depth must be a whole number from 1 to {MOST_LAYERS}; got 1000000000"),
        (lambda: Regression(condition=1e300), "condition must be a number from 1 to 1e[+]12; got 1e[+]300"),
        (lambda: Range(0.5, 0.1), "range high must be ≥ low"),
        (lambda: Range(0.5, 2.0, complement=True), "≤ 1 of a complement; got 2.0"),
        (lambda: type(COMPETITORS["least-squares"])(composition="none"), "unknown composition 'none'"),
        (lambda: Dense(["8"]), "network.widths must be a list, each a whole number"),
        (lambda: Digits(limit=2.5), "data.limit must be None or a whole number; got 2.5"),
    ],
)
def test_numbers_that_fit_nothing_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_ranges_are_checked_in_order_and_by_name():
    @dataclass(frozen=True)
    class Mine:
        a: float = 1.0
        b: list[float] = dataclasses.field(default_factory=list)
        c: float | None = None
        d: float = dataclasses.field(default=1.0, metadata={"finite": False})

        def __post_init__(self) -> None:
            check_types(self, "my ")
            check_ranges(self, "my ", a=(self.a > 0, "> 0"), d=(self.d > 0, "above 0"))

    assert Mine(2, [1, 2.5], 3, math.inf).d == math.inf
    for bad, message in (
        ({"a": 0, "d": 0}, "my a must be > 0; got 0"),
        ({"d": 0}, "my d must be above 0; got 0"),
        ({"d": NAN}, "my d must be a number; got nan"),
        ({"b": [1, INF]}, r"my b must be a list, each a finite number; got \[1, inf\]"),
        ({"c": INF}, "my c must be None or a finite number; got inf"),
    ):
        with pytest.raises(ValueError, match=message):
            Mine(**bad)


REFUSED = {
    "bench narrow --depth 1000000000": "depth must be a whole number from 1 to 10000",
    "bench narrow --steps 99999999999": "--steps 99999999999 is too large",
    "bench narrow --length nan": "--length must be a finite number; got nan",
    "bench narrow --length inf": "--length must be a finite number; got inf",
    "bench narrow --weight_decay nan": "weight_decay must be a finite number; got nan",
    "bench narrow --competitors adam@nan": "adam@nan: the share of the steps must be a number in (0, 1]",
    "bench regression --condition inf": "condition must be a finite number; got inf",
    f"bench narrow --steps {'9' * 5000}": "--steps must be a whole number",
    f"verify --seeds {'9' * 5000}": f"--seeds must be a whole number; got '{'9' * 60}…'",
    f"inspect nowhere --samples {'9' * 5000}": "--samples must be a whole number; got '999",
    f"check model.py:net --input {'9' * 5000}": "--input must be whole numbers ≥ 1 with commas between them",
    f"train --epochs {'9' * 5000}": f"--epochs must be a whole number; got '{'9' * 60}…'",
    "verify --seeds 2147483648": "--seeds 2147483648 is too large",
    "verify --seeds 00": "--seeds must be a whole number ≥ 1; got 0",
    "train --network.name vit --network.depth 1000000000": "ask for 10000 or fewer",
    "train --optimizer.lr inf": "optimizer.lr must be a finite number; got inf",
    "train --optimizer.name sgd --optimizer.weight_decay inf": "optimizer.weight_decay must be a finite number",
}


@pytest.mark.parametrize("command", REFUSED, ids=lambda command: command[:50])
def test_wrong_numbers_end_with_one_sentence(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert REFUSED[command] in error and error.startswith("targetprop: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
