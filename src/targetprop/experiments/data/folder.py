"""A folder of class folders of images, with or without a split into training and test."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from targetprop.experiments.data.dataset import Dataset, Source, stratified_split
from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.settings import check_ranges

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
_GREY, _COLOUR = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_Files = list[tuple[Path, int]]
logging.getLogger("PIL").addHandler(logging.NullHandler())  # what is wrong with a file is said once, in the error


@dataclass(frozen=True)
class Folder(Source):
    """``ROOT/train/CLASS/*.png`` and ``ROOT/test/CLASS/*.png``; or ``ROOT/CLASS/*.png``, a fifth of it for testing.

    Attributes:
        root: folder that holds the data.
        size: height and width in pixels that images are resized to; null is the first image's own size.
    """

    root: str = "data"
    size: int | None = None
    name: ClassVar[str] = "folder"

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        check_ranges(self, "data.", size=(self.size is None or self.size >= 1, "null or a whole number ≥ 1"))

    def read(self) -> Dataset:
        """Read all images; see `Source.read`."""
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise CommandError(f"--data.root {root} is not a folder; give the one that holds the class folders")
        if (root / "train").is_dir():
            return self._load_split(root)
        classes = _class_names(root)
        files = _list_images(root, classes)
        labels = torch.tensor([label for _, label in files])
        rare = [name for i, name in enumerate(classes) if int((labels == i).sum()) < 2]
        if rare:
            raise CommandError(f"{root / rare[0]} holds one image; a class needs two or more to be split", FAILURE)
        x = _read_images(files, self.size)
        train, test = stratified_split(labels, fraction=0.2)
        return Dataset(x[train], labels[train], x[test], labels[test], len(classes), f"the data under {root}")

    def _load_split(self, root: Path) -> Dataset:
        if not (root / "test").is_dir():
            raise CommandError(f"{root} has a folder train but none called test; add it, with the same class folders")
        classes = _class_names(root / "train")
        unknown = set(_class_names(root / "test")) - set(classes)
        if unknown:
            raise CommandError(f"{root / 'test' / min(unknown)} is a class that {root / 'train'} does not have; add it")
        train = _list_images(root / "train", classes)
        test = _list_images(root / "test", [name for name in classes if (root / "test" / name).is_dir()], classes)
        x = _read_images([*train, *test], self.size)
        y = torch.tensor([label for _, label in (*train, *test)])
        n = len(train)
        return Dataset(x[:n], y[:n], x[n:], y[n:], len(classes), f"the data under {root}")


def _class_names(folder: Path) -> list[str]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise CommandError(f"{folder} has no class folders; put the images of each class into a folder of its own")
    return names


def _list_images(folder: Path, names: list[str], classes: list[str] | None = None) -> _Files:
    found: _Files = []
    for name in names:
        paths = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in _ENDINGS)
        if not paths:
            raise CommandError(f"{folder / name} holds no images ({', '.join(_ENDINGS)}); add some or remove it")
        found += [(path, (classes or names).index(name)) for path in paths]
    return found


def _read_images(files: _Files, size: int | None) -> Tensor:
    import numpy as np
    from PIL import Image

    colour = any(_is_colour(path) for path, _ in files)
    arrays, shape = [], None if size is None else (size, size)
    for path, _ in files:
        with _judging(path), Image.open(path) as opened:
            image = opened.convert("RGB" if colour else "L")
        shape = shape or image.size
        arrays.append(np.asarray(image if image.size == shape else image.resize(shape)))
    x = torch.from_numpy(np.stack(arrays)).float().div_(255)
    return x.permute(0, 3, 1, 2).contiguous() if colour else x.unsqueeze(1)


def _is_colour(path: Path) -> bool:
    from PIL import Image

    with _judging(path), Image.open(path) as image:
        mode = image.mode
    if mode not in (*_GREY, *_COLOUR):
        raise CommandError(f"{path} has pixels of kind {mode!r}; convert it to 8-bit greyscale or colour", FAILURE)
    return mode in _COLOUR


@contextmanager
def _judging(path: Path) -> Iterator[None]:
    """Turn whatever a reader of one of the many formats raises about a damaged file into a sentence."""
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"):
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # a size that no such file can have
            yield
    except Exception as error:
        raise CommandError(f"{path} is no readable image ({error}); replace or remove it", FAILURE) from error
