"""MNIST, or any set in its four idx files, as unpacked from its download site."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from targetprop.experiments.data.dataset import Dataset, Source
from targetprop.experiments.data.idx import read_idx
from targetprop.experiments.errors import FAILURE, CommandError


@dataclass(frozen=True)
class Mnist(Source):
    """The four files under ``ROOT/MNIST/raw`` or in ``ROOT`` itself, gzipped or not.

    Attributes:
        root: folder that holds the data.
    """

    root: str = "data"
    name: ClassVar[str] = "mnist"

    def read(self) -> Dataset:
        """Read the four files; see `Source.read`."""
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise CommandError(f"--data.root {root} is not a folder; give the one that holds MNIST's files")
        train, test = (self._part(root, part) for part in ("train", "t10k"))
        if train[0].shape[1:] != test[0].shape[1:]:
            sizes = " and ".join("×".join(map(str, x.shape[2:])) for x in (train[0], test[0]))
            raise CommandError(f"training and test images under {root} differ in size, {sizes}; fetch both", FAILURE)
        return Dataset(*train, *test, classes=10, where=f"the data under {root}")

    def _part(self, root: Path, part: str) -> tuple[Tensor, Tensor]:
        images = read_idx(_find(root, f"{part}-images", "idx3"), 3)
        labels = read_idx(_find(root, f"{part}-labels", "idx1"), 1)
        return images.float().div_(255).unsqueeze(1), labels.long()


def _find(root: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{dash}{kind}-ubyte{end}" for dash in "-." for end in ("", ".gz")]
    for folder in (root / "MNIST" / "raw", root):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise CommandError(f"{names[0]}.gz is neither in {root / 'MNIST' / 'raw'} nor in {root}; unpack MNIST there")
