"""``targetprop check``: says what a method does with a model of the user's own, layer by layer."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, get_args

import torch
from torch import Tensor, nn

import targetprop as tp
from targetprop.experiments.arguments import read_command_line
from targetprop.experiments.errors import FAILURE, CommandError, suggest
from targetprop.experiments.memory import fitting
from targetprop.experiments.number_range import read_count
from targetprop.layers.chain import Cut, Model

_USAGE = """usage: targetprop check FILE:NAME --input SHAPE [--method NAME] [--cut CUT]

Imports NAME from the Python file FILE: a model, a list of modules, or a function that returns one. Prints a table, one
row per layer: how it is inverted, what its decoder learns, what is local. Exit status 0 if the method supports the
model, 1 if it refuses it, with the reason and the way out.

options:
  --input SHAPE  shape of one sample, such as 1,28,28
  --method NAME  a method of targetprop methods (default: iterated)
  --cut CUT      post-activation or pre-activation (default: the method's own)
"""


@dataclass(frozen=True)
class _Request:
    file: Path
    name: str
    shape: tuple[int, ...]
    method: str
    cut: Any


def check(argv: list[str]) -> int:
    """Run the command."""
    if "-h" in argv or "--help" in argv:
        sys.stdout.write(_USAGE)
        return 0
    request = _read(argv)
    model = _load(request.file, request.name)
    shape = ",".join(map(str, request.shape))
    with fitting(f"{request.name} with --input {shape}", "give a smaller shape or model"):
        found = tp.check(model, _input(request.shape), request.method, request.cut)
    sys.stdout.write(f"{found}\n")
    return 0 if found.supported else FAILURE


def _read(argv: list[str]) -> _Request:
    if not argv or argv[0].startswith("-"):
        raise CommandError("give a model first: targetprop check FILE:NAME --input SHAPE")
    file, colon, name = argv[0].rpartition(":")
    if not (colon and file and name):
        raise CommandError(f"{argv[0]!r} names no model; write FILE:NAME, such as nets.py:net")
    arguments = read_command_line(argv[1:], "check")
    values = dict(arguments.values)
    shape, method, cut = values.pop("input", None), values.pop("method", "iterated"), values.pop("cut", None)
    unknown = [*values, *sorted(arguments.flags)]
    if unknown:
        raise CommandError(f"targetprop check has no option --{unknown[0]}; {suggest(unknown[0], _OPTIONS)}")
    if shape is None:
        raise CommandError("give the shape of one sample, such as --input 1,28,28")
    if method not in tp.METHODS:
        raise CommandError(f"--method {method} is unknown; {suggest(method, tp.METHODS)}")
    if cut is not None and cut not in get_args(Cut):
        raise CommandError(f"--cut must be {' or '.join(get_args(Cut))}; got {cut!r}")
    return _Request(Path(file).expanduser(), name, _shape(shape), method, cut)


_OPTIONS = ("input", "method", "cut")


def _shape(text: str) -> tuple[int, ...]:
    sizes = [part.strip() for part in text.strip("[]() ").split(",")]
    try:
        return tuple(read_count("input", size) for size in sizes)
    except CommandError as error:
        raise CommandError(f"{error}; write sizes with commas between them, such as 1,28,28") from error


def _input(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


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
