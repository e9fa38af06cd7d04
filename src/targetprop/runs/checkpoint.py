"""Checkpoints without pickle, one file each: tensors as safetensors, everything else as JSON in its metadata.

The metadata also hold a SHA-256 of the whole file, computed with zeros in its own place, so that damage anywhere is
noticed.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

import targetprop
from targetprop.runs.atomic import write_atomic
from targetprop.runs.errors import RunError

VERSION = 1
CHECKPOINT = "checkpoint.safetensors"
_KEY, _ZEROS = b'"sha256":"', b"0" * 64


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replace a folder's checkpoint."""
    tensors: dict[str, Tensor] = {}
    document = {
        "version": str(VERSION),
        "targetprop": targetprop.__version__,
        "state": json.dumps(_encode(state, "", tensors)),
    }
    content = save(tensors, document | {"sha256": _ZEROS.decode()})
    digest = sha256(content).hexdigest().encode()
    write_atomic(folder / CHECKPOINT, content.replace(_KEY + _ZEROS, _KEY + digest, 1))


def has_checkpoint(folder: Path) -> bool:
    """Tell whether a folder has a checkpoint."""
    return (folder / CHECKPOINT).exists()


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Read a folder's checkpoint."""
    path = folder / CHECKPOINT
    try:
        content = path.read_bytes()
    except OSError as error:
        _refuse(path, f"cannot be read ({error.strerror})")
    start = content.find(_KEY) + len(_KEY)
    zeroed = content[:start] + _ZEROS + content[start + len(_ZEROS) :]
    if content[start : start + len(_ZEROS)] != sha256(zeroed).hexdigest().encode():
        _refuse(path, "is damaged (its checksum is another one)")
    try:
        document = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        version, release = document["version"], document["targetprop"]
        if version == str(VERSION):
            return _decode(json.loads(document["state"]), load(content))
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        _refuse(path, f"cannot be understood ({error})")
    problem = f"{path} has version {version} and this release reads {VERSION}"
    raise RunError(f"{problem}; resume with targetprop {release}, which wrote it, or start a new run")


def _refuse(path: Path, problem: str) -> NoReturn:
    raise RunError(f"{path} {problem}; put a copy back in its place, or start a new run")


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
