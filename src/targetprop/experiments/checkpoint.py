"""Checkpoints without pickle: every tensor in ``checkpoint.safetensors``, everything else in ``checkpoint.json``.

The JSON holds the SHA-256 of the tensors' file, so a pair that does not belong together is noticed. Both files are on
disk before either takes its place: after a crash between the two, the staged JSON still completes the pair.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.experiments.run_folder import commit, stage, staged

VERSION = 1
TENSORS, VALUES = "checkpoint.safetensors", "checkpoint.json"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replace a folder's checkpoint.

    Args:
        folder: the run's folder.
        state: nested dictionaries, lists and tuples of tensors and plain values.
    """
    tensors: dict[str, Tensor] = {}
    values = _encode(state, "", tensors)
    content = save(tensors)
    document = {"version": VERSION, "sha256": sha256(content).hexdigest(), "state": values}
    stage(folder / TENSORS, content)
    stage(folder / VALUES, json.dumps(document).encode())
    commit(folder / TENSORS)
    commit(folder / VALUES)


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Read a folder's checkpoint.

    Args:
        folder: the run's folder.

    Returns:
        What was saved, with all tensors on the CPU; what is missing, damaged or of another version ends the command.
    """
    content = _read(folder / TENSORS)
    checksum = sha256(content).hexdigest()
    document = _parse(folder / VALUES)
    if document["sha256"] != checksum and staged(folder / VALUES).exists():
        document = _parse(staged(folder / VALUES))
    if document["sha256"] != checksum:
        _damaged(folder / TENSORS, f"is damaged or does not belong to {VALUES}")
    try:
        return _decode(document["state"], load(content))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        _damaged(folder / VALUES, f"cannot be understood ({error})")


def _parse(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_read(path))
        version = document["version"]
        if version == VERSION and not {"sha256", "state"} <= document.keys():
            raise ValueError("entries are missing")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _damaged(path, f"is damaged ({error})")
    if version != VERSION:
        problem = f"{path} has version {version!r} and this release reads {VERSION}"
        raise CommandError(f"{problem}; resume with the release that wrote it, or start a new run", FAILURE)
    return document


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        _damaged(path, f"cannot be read ({error.strerror})")


def _damaged(path: Path, problem: str) -> NoReturn:
    raise CommandError(f"{path} {problem}; put a copy back in its place, or start a new run", FAILURE)


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        return {"$tensor": path}
    if isinstance(value, dict):
        items = [[key, _encode(item, f"{path}/{key}".lstrip("/"), tensors)] for key, item in value.items()]
        return dict(items) if all(isinstance(key, str) for key in value) else {"$items": items}
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint holds tensors and plain values; {path} is a {type(value).__name__}")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$items" in value:
        return {key: _decode(item, tensors) for key, item in value["$items"]}
    if "$tuple" in value:
        return tuple(_decode(item, tensors) for item in value["$tuple"])
    return {key: _decode(item, tensors) for key, item in value.items()}


def random_state() -> dict[str, Tensor]:
    """Collect PyTorch's own random states."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def restore_random_state(states: dict[str, Tensor]) -> None:
    """Put PyTorch's own random states back.

    Args:
        states: what `random_state` returned, here or on another machine.
    """
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
