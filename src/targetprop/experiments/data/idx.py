"""The idx format of MNIST's files: a magic number, big-endian sizes, unsigned bytes."""

import gzip
import struct
import zlib
from math import prod
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from targetprop.experiments.errors import FAILURE, CommandError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read a file of unsigned bytes, gzipped if its name ends in ``.gz``."""
    try:
        content = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        _damaged(path, f"cannot be read ({error})")
    head = 4 + 4 * dimensions
    if len(content) < head or content[:4] != bytes([0, 0, _UNSIGNED_BYTE, dimensions]):
        _damaged(path, f"is not an idx file of unsigned bytes with {dimensions} dimensions")
    sizes = struct.unpack(f">{dimensions}I", content[4:head])
    if len(content) != head + prod(sizes):
        _damaged(path, f"holds {len(content) - head} bytes of data where its header says {prod(sizes)}")
    return torch.frombuffer(content, dtype=torch.uint8, offset=head, count=prod(sizes)).reshape(sizes)


def _damaged(path: Path, problem: str) -> NoReturn:
    raise CommandError(f"{path} {problem}; fetch the file again", FAILURE)
