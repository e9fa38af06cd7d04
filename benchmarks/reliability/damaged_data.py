"""Damages files of MNIST, CIFAR-10 and image folders, and trains on them through the command line.

Every damage must be refused in a sentence that names the file, or be harmless: the same pixels and labels. Where a
format has no checksum, changed pixels are just other pixels; these are counted apart, as unnoticed.
"""

import gzip
import random
import struct
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from reliability.damage import Answer, add, ask, damages
from reliability.runs import fresh
from targetprop.experiments.data import SOURCES, Dataset
from targetprop.experiments.errors import CommandError

_TRAIN = "--device cpu --epochs 1 --network.widths 4 --method backprop --batch_size 64 --data.limit 16".split()
FLIPS, FAST_SHARE = 40, 17
_SHARE = 99  # of the damages, one in so many goes through the whole command line, the others through its reader
_CHECKED = ("mnist.gz", "png")  # formats with a checksum


def measure(fast: bool) -> dict[str, Any]:
    """Damage every format; returns the figures."""
    figures: dict[str, Any] = {"failures": []}
    with TemporaryDirectory() as name:
        for kind, (source, write) in WRITERS.items():
            folder = Path(name) / kind
            write(folder)
            options = ["--data.name", source, "--data.root", folder]
            sound = SOURCES[source](root=str(folder)).load()  # type: ignore[call-arg]
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            for path in files[:: max(1, len(files) // 2)]:
                damage_file(figures, kind, path, options, sound, FAST_SHARE if fast else 1)
    return figures


def damage_file(figures: dict[str, Any], kind: str, path: Path, options: list[Any], sound: Dataset, share: int) -> None:
    """Damage one file in many ways, and put it back."""
    content = path.read_bytes()
    for number, (what, damaged) in enumerate(damages(content, random.Random(path.name), FLIPS)):
        if number % share or damaged == content:
            continue
        path.write_bytes(damaged)
        place, answer, data = f"{kind}, {path.name}, {what}", None, None
        try:
            data = SOURCES[options[1]](root=str(options[-1])).load()  # type: ignore[call-arg]
        except CommandError as error:
            answer = Answer(error.status, f"targetprop: {error}\n")
        except BaseException as error:
            answer = Answer(None, repr(error))
        if number % _SHARE == 0:
            run = fresh(Path(f"{options[-1]}-run"))
            asked = ask("train", *_TRAIN, *options, "--out", run)
            add(figures, ["through the whole command"])
            if asked.status != (answer.status if answer else 0) or (answer and answer.error != asked.error):
                add(figures, [kind, "crashed"], f"{place}: {asked.error!r}")
                continue
        count(figures, kind, place, (path.name, str(options[-1])), answer, data is not None and _same(sound, data))
    path.write_bytes(content)


def count(
    figures: dict[str, Any], kind: str, place: str, names: tuple[str, str], answer: Answer | None, same: bool
) -> None:
    """Count one answer; None is a data set that was read."""
    if answer is None:
        unnoticed = f"{place}: unnoticed" if kind in _CHECKED else None
        add(figures, [kind, "harmless"]) if same else add(figures, [kind, "unnoticed"], unnoticed)
    elif answer.status is None:
        add(figures, [kind, "crashed"], f"{place}: {answer.error}")
    else:
        clear = answer.is_sentence and any(name in answer.error for name in names)
        add(figures, [kind, "refused"], None if clear else f"{place}: said {answer.error!r}")


def _same(first: Dataset, second: Dataset) -> bool:
    names = ("train_x", "train_y", "test_x", "test_y")
    pairs = [(getattr(first, name), getattr(second, name)) for name in names]
    return all(one.shape == two.shape and bool((one == two).all()) for one, two in pairs)


def _mnist(zipped: bool) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        values = np.random.default_rng(0)
        for part, n in (("train", 20), ("t10k", 10)):
            images, labels = values.integers(0, 256, (n, 5, 4), np.uint8), (np.arange(n) % 10).astype(np.uint8)
            for name, array in ((f"{part}-images-idx3", images), (f"{part}-labels-idx1", labels)):
                head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
                content = head + array.tobytes()
                path = folder / f"{name}-ubyte{'.gz' * zipped}"
                path.write_bytes(gzip.compress(content, mtime=0) if zipped else content)

    return write


def _cifar10(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        records = np.random.default_rng(0).integers(0, 256, (4, 3073), np.uint8)
        records[:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(records.tobytes())


def _images(ending: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for label in range(2):
            (folder / f"class{label}").mkdir(parents=True)
            for number in range(4):
                pixels = np.random.default_rng([label, number]).integers(0, 256, (6, 6, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"class{label}" / f"{label}{number}.{ending}")

    return write


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "mnist": ("mnist", _mnist(zipped=False)),
    "mnist.gz": ("mnist", _mnist(zipped=True)),
    "cifar10": ("cifar10", _cifar10),
    **{ending: ("folder", _images(ending)) for ending in ("png", "jpg", "bmp", "gif", "tif", "webp", "ppm")},
}
