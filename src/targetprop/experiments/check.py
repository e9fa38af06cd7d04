"""``targetprop check``: says what a method does with a model of the user's own, layer by layer."""

import sys
from dataclasses import dataclass
from typing import Any, get_args

import targetprop as tp
from targetprop.experiments.errors import FAILURE, suggest
from targetprop.experiments.example_input import make_inputs, read_forms
from targetprop.experiments.memory import fitting
from targetprop.experiments.options import read_request
from targetprop.experiments.own_model import load_model, split_source
from targetprop.layers import Cut
from targetprop.settings import check_ranges


@dataclass(frozen=True)
class Request:
    """Imports NAME from the Python file FILE and says what a method does with it.

    NAME is a model, a list of modules, or a function that returns one; a parameter shape of it is given the shape of
    the first input. Prints a table, one row per layer: how it is inverted, what its decoder learns, what is local. Exit
    status 0 if the method supports the model, 1 if it refuses it, with the reason and the way out.

    SHAPE is the sizes of one sample with commas between them, then the type if it is not float: 12:int is the whole
    numbers 0 and 1, 12:int1000 those from 0 to 999, 12:bool False and True; :int10 is one number per sample.

    Several inputs are separated by spaces: in order, --input 3,32,32 16:int100, or by keyword, --input
    input_ids=12:int1000 attention_mask=12:bool.

    Attributes:
        model: a model of a Python file.
        input: the shape of one sample, such as 1,28,28 or 12:int1000; several are separated by spaces.
        method: a method of targetprop methods.
        cut: post-activation or pre-activation; null is the method's own.
        layers: names of modules, after each of which a layer ends; several are separated by spaces.
    """

    model: str
    input: list[str]
    method: str = "l-drl"
    cut: Any = None
    layers: list[str] | None = None

    def __post_init__(self) -> None:
        """Check the request; a wrong one raises `ValueError`."""
        read_forms(self.input)
        check_ranges(self, "--", cut=(self.cut in (None, *get_args(Cut)), " or ".join(get_args(Cut))))
        if self.method not in tp.METHODS:
            raise ValueError(f"--method {self.method} is unknown; {suggest(self.method, tp.METHODS)}")


def check(argv: list[str]) -> int:
    """Run the command."""
    (request,) = read_request(argv, "targetprop check FILE:NAME --input SHAPE [options]", Request)
    _, name = split_source(request.model)
    forms = read_forms(request.input)
    model = load_model(request.model, shape=forms[0].sizes)
    with fitting(f"{name} with --input {' '.join(request.input)}", "give a smaller shape or model"):
        found = tp.check(model, make_inputs(request.input), request.method, request.cut, request.layers)
    sys.stdout.write(f"{found}\n")
    if "does not accept example_input" in (found.refusal or ""):
        given = "; ".join(map(str, forms))
        sys.stdout.write(f"--input gave a sample of {given}; targetprop check --help shows other types and several\n")
    return 0 if found.supported else FAILURE
