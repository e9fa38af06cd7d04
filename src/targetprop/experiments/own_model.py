"""A model of the user's own, named as ``FILE:NAME``: imported from a Python file, or made by a function of one."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from inspect import signature
from pathlib import Path
from typing import Any, TypeGuard

from torch import nn

from targetprop.experiments.errors import CommandError, suggest
from targetprop.layers import Model


def split_source(source: str) -> tuple[Path, str]:
    """Split ``FILE:NAME``."""
    file, colon, name = source.rpartition(":")
    if not (colon and file and name):
        raise CommandError(f"{source!r} names no model; write FILE:NAME, such as nets.py:net")
    return Path(file).expanduser(), name


def load_model(source: str, **known: Any) -> Model:
    """Import a model, or call what makes it with those of the known values that it has parameters for."""
    file, name = split_source(source)
    if not file.is_file():
        raise CommandError(f"{file} is no file; give a Python file that holds the model")
    with _neighbours(file):
        value = _import(file)
        if not hasattr(value, name):
            names = [key for key in vars(value) if not key.startswith("_")]
            hint = f"{file} has no {name!r}; {suggest(name, names)}" if names else f"{file} defines nothing"
            raise CommandError(hint)
        found = getattr(value, name)
        if callable(found) and not isinstance(found, nn.Module):
            found = _call(found, f"{name}() of {file}", known)
    if not _is_model(found):
        raise CommandError(f"{name} of {file} is {type(found).__name__}; it must be an nn.Module or a list of modules")
    return found


def _call(make: Any, title: str, known: dict[str, Any]) -> Any:
    try:
        taken = signature(make).parameters
    except (ValueError, TypeError):  # some built-in callables do not say
        taken = {}
    given = {name: value for name, value in known.items() if name in taken}
    try:
        return make(**given)
    except Exception as error:
        told = " and ".join(f"{name}={value}" for name, value in given.items()) or "no arguments"
        remedy = f"correct it, and give its parameters other than {' and '.join(known)} a default"
        raise CommandError(f"{title} fails ({_said(error)}), called with {told}; {remedy}") from error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _is_model(value: Any) -> TypeGuard[Model]:
    if isinstance(value, dict):
        value = list(value.values())
    modules = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(module, nn.Module) for module in modules)


@contextmanager
def _neighbours(file: Path) -> Iterator[None]:
    """Let a file import those beside it."""
    sys.path.insert(0, folder := str(file.resolve().parent))
    try:
        yield
    finally:
        sys.path.remove(folder)


def _import(file: Path) -> Any:
    """Run a file as a module, under a name that is no other module's."""
    name = f"_own_{file.stem}"
    spec = spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise CommandError(f"{file} is no Python file; its name must end in .py")
    module = sys.modules[name] = module_from_spec(spec)  # dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise CommandError(f"{file} cannot be imported ({_said(error)}); correct it") from error
    return module
