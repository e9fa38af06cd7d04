"""CIFAR-10's binary version, as unpacked from its download site."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NoReturn

import torch
from torch import Tensor

from targetprop.experiments.data.dataset import Dataset, Source
from targetprop.experiments.errors import FAILURE, CommandError

_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32  # a label, then the planes of red, green and blue
_FOLDER = "cifar-10-batches-bin"
_TRAINING = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = ("test_batch.bin",)


@dataclass(frozen=True)
class Cifar10(Source):
    """``data_batch_1.bin`` … ``test_batch.bin``, under ``ROOT/cifar-10-batches-bin`` or in ``ROOT`` itself.

    Attributes:
        root: folder that holds the data.
    """

    normalise: bool = True
    crop: int = 4
    flip: bool = True
    root: str = "data"
    name: ClassVar[str] = "cifar10"

    def read(self) -> Dataset:
        """Read the six files; see `Source.read`."""
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise CommandError(f"--data.root {root} is not a folder; give the one that holds CIFAR-10's files")
        paths = {name: _find(root, name) for name in (*_TRAINING, *_TEST)}
        train, test = (_read_batches([paths[name] for name in names]) for names in (_TRAINING, _TEST))
        return Dataset(*train, *test, classes=10, where=f"the data under {root}")


def _find(root: Path, name: str) -> Path:
    for folder in (root / _FOLDER, root):
        if (folder / name).is_file():
            return folder / name
    problem = f"{name} is neither in {root / _FOLDER} nor in {root}"
    raise CommandError(f"{problem}; unpack the binary version of CIFAR-10, cifar-10-binary.tar.gz, there")


def _read_batches(paths: list[Path]) -> tuple[Tensor, Tensor]:
    batches = [_read_records(path) for path in paths]
    images, labels = torch.empty(sum(map(len, batches)), *_SHAPE), torch.cat([batch[:, 0] for batch in batches])
    for batch, part in zip(batches, images.split([len(batch) for batch in batches]), strict=True):
        part.copy_(batch[:, 1:].view(-1, *_SHAPE))
    return images.div_(255), labels.long()


def _read_records(path: Path) -> Tensor:
    import numpy as np

    try:
        content = torch.from_numpy(np.fromfile(path, dtype=np.uint8))
    except OSError as error:
        _damaged(path, f"cannot be read ({error.strerror})")
    if len(content) == 0 or len(content) % _RECORD:
        _damaged(path, f"holds {len(content)} bytes, which is no whole number of records of {_RECORD} bytes")
    records = content.view(-1, _RECORD)
    if (highest := int(records[:, 0].max())) > 9:
        _damaged(path, f"has label {highest} where CIFAR-10 has 0…9")
    return records


def _damaged(path: Path, problem: str) -> NoReturn:
    raise CommandError(f"{path} {problem}; fetch the file again", FAILURE)
