"""``targetprop check``: says what a method does with a model of the user's own, layer by layer."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, get_args

import torch
from torch import nn

import targetprop as tp
from targetprop.experiments.errors import FAILURE, CommandError, suggest
from targetprop.experiments.memory import fitting
from targetprop.experiments.options import read_request
from targetprop.layers.chain import Cut, Model
from targetprop.settings import check_ranges


@dataclass(frozen=True)
class Request:
    """Imports NAME from the Python file FILE and says what a method does with it.

    NAME is a model, a list of modules, or a function that returns one. Prints a table, one row per layer: how it is
    inverted, what its decoder learns, what is local. Exit status 0 if the method supports the model, 1 if it refuses
    it, with the reason and the way out.

    Attributes:
        model: a model of a Python file.
        input: the shape of one sample, such as 1,28,28.
        method: a method of targetprop methods.
        cut: post-activation or pre-activation; null is the method's own.
    """

    model: str
    input: list[int]
    method: str = "iterated"
    cut: Any = None

    def __post_init__(self) -> None:
        """Check the request; a wrong one raises `ValueError`."""
        sizes = "whole numbers ≥ 1 with commas between them, such as 1,28,28"
        good = isinstance(self.input, list) and all(isinstance(size, int) and size >= 1 for size in self.input)
        check_ranges(
            self, "--", input=(good, sizes), cut=(self.cut in (None, *get_args(Cut)), " or ".join(get_args(Cut)))
        )
        if self.method not in tp.METHODS:
            raise ValueError(f"--method {self.method} is unknown; {suggest(self.method, tp.METHODS)}")


def check(argv: list[str]) -> int:
    """Run the command."""
    (request,) = read_request(argv, "targetprop check FILE:NAME --input SHAPE [options]", Request)
    file, colon, name = request.model.rpartition(":")
    if not (colon and file and name):
        raise CommandError(f"{request.model!r} names no model; write FILE:NAME, such as nets.py:net")
    model = _load(Path(file).expanduser(), name)
    with fitting(f"{name} with --input {','.join(map(str, request.input))}", "give a smaller shape or model"):
        x = torch.randn(2, *request.input, generator=torch.Generator().manual_seed(0))
        found = tp.check(model, x, request.method, request.cut)
    sys.stdout.write(f"{found}\n")
    return 0 if found.supported else FAILURE


def _load(file: Path, name: str) -> Model:
    if not file.is_file():
        raise CommandError(f"{file} is no file; give a Python file that holds the model")
    value = _import(file)
    if not hasattr(value, name):
        names = [key for key in vars(value) if not key.startswith("_")]
        raise CommandError(f"{file} has no {name!r}; {suggest(name, names)}" if names else f"{file} defines nothing")
    found = getattr(value, name)
    if callable(found) and not isinstance(found, nn.Module):
        try:
            found = found()
        except Exception as error:
            raise CommandError(f"{name}() of {file} fails ({type(error).__name__}: {error}); it is called without"
                               " arguments") from error  # fmt: skip
    if not _is_model(found):
        raise CommandError(f"{name} of {file} is {type(found).__name__}; it must be an nn.Module or a list of modules")
    return found


def _is_model(value: Any) -> TypeGuard[Model]:
    if isinstance(value, dict):
        value = list(value.values())
    modules = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(module, nn.Module) for module in modules)


def _import(file: Path) -> Any:
    """Run a file as a module that can import its neighbours."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise CommandError(f"{file} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise CommandError(f"{file} cannot be imported ({type(error).__name__}: {error}); correct it") from error
    finally:
        sys.path.pop(0)
    return module
