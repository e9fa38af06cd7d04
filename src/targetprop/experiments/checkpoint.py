"""Checkpoints without pickle: every tensor in ``checkpoint.safetensors``, everything else in ``checkpoint.json``.

The JSON holds its own SHA-256 and that of the tensors' file, so damage and a pair that does not belong together are
noticed. Both files are on disk before either takes its place: after a crash between the two, the staged JSON still
completes the pair.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

import targetprop
from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.report.atomic import commit, stage, staged

VERSION, OLDEST = 2, 1
TENSORS, VALUES = "checkpoint.safetensors", "checkpoint.json"
_LOOKS = 3  # at a pair that its run may be replacing right now


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replace a folder's checkpoint."""
    tensors: dict[str, Tensor] = {}
    values = _encode(state, "", tensors)
    content = save(tensors)
    document = {
        "version": VERSION,
        "targetprop": targetprop.__version__,
        "sha256": sha256(content).hexdigest(),
        "state": values,
    }
    stage(folder / TENSORS, content)
    stage(folder / VALUES, json.dumps({**document, "own_sha256": _digest(document)}).encode())
    commit(folder / TENSORS)
    commit(folder / VALUES)


def has_checkpoint(folder: Path) -> bool:
    """Tell whether a save has got so far that `load_checkpoint` finds one, or that something of one is left."""
    return (folder / TENSORS).exists() or (folder / VALUES).exists()


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Read a folder's checkpoint."""
    content, document, _ = _read_pair(folder)
    try:
        return _decode(document["state"], load(content))
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        _damaged(folder / VALUES, f"cannot be understood ({error})")


def settle_checkpoint(folder: Path) -> None:
    """Finish a save that a crash cut off between its two files, before the next one writes over the staged half."""
    path = _read_pair(folder)[2]
    if path != folder / VALUES:
        commit(folder / VALUES)


def _read_pair(folder: Path) -> tuple[bytes, dict[str, Any], Path]:
    """Read the tensors' file and the JSON that belongs to it, and say where that was."""
    for _ in range(_LOOKS):
        content = _read(folder / TENSORS)
        checksum = sha256(content).hexdigest()
        waiting = staged(folder / VALUES)
        if waiting.exists() and _claims(waiting) == checksum and _claims(folder / VALUES) != checksum:
            return content, _parse(waiting), waiting
        document = _parse(folder / VALUES)
        if document["sha256"] == checksum:
            return content, document, folder / VALUES
    _damaged(folder / TENSORS, f"is damaged or does not belong to {VALUES}")


def _claims(path: Path) -> str | None:
    """Find the tensors' checksum in a JSON file, if it has one."""
    try:
        return json.loads(path.read_bytes())["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _parse(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_read(path))
        version = document["version"]
        known = isinstance(version, int) and OLDEST <= version <= VERSION
        if known and not {"sha256", "state"} <= document.keys():
            raise ValueError("entries are missing")
        if known and version > 1 and document.pop("own_sha256", None) != _digest(document):
            raise ValueError("its checksum is another one")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        _damaged(path, f"is damaged ({error})")
    if not known:
        release = document.get("targetprop")
        problem = f"{path} has version {version!r} and this release reads {OLDEST} to {VERSION}"
        way_out = f"targetprop {release}, which wrote it" if isinstance(release, str) else "the release that wrote it"
        raise CommandError(f"{problem}; resume with {way_out}, or start a new run", FAILURE)
    return document


def _digest(document: dict[str, Any]) -> str:
    return sha256(json.dumps(document).encode()).hexdigest()


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
    """Put PyTorch's own random states back."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
