"""Batches of real data for models of any kind: CIFAR-10's images, and the text of Python's own standard library."""

import string
import sysconfig
from functools import cached_property
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn import functional

from targetprop.experiments.data import Cifar10
from targetprop.experiments.data.dataset import Dataset

FIRST = 3  # tokens before the characters: padding, start and end, which models may treat in a special way
VOCAB = FIRST + len(string.printable)
KINDS = (string.ascii_lowercase, string.ascii_uppercase, string.digits, string.whitespace, string.punctuation)

Batch = tuple[Tensor, Tensor]


class RealData:
    """Draws batches; what they hold follows from the generator alone.

    Args:
        root: folder that holds CIFAR-10's binary version.
        images: number of training images to use.
        characters: number of characters of text to use.
    """

    def __init__(self, root: str, images: int = 5000, characters: int = 1_000_000) -> None:
        """Read nothing until it is needed."""
        self.root, self.count, self.characters = root, images, characters
        self._pooled: dict[tuple[int, bool], Tensor] = {}

    @cached_property
    def cifar10(self) -> Dataset:
        """The images, normalised."""
        return Cifar10(root=self.root, limit=self.count).load()

    @cached_property
    def text(self) -> Tensor:
        """Tokens of the modules of the standard library in alphabetic order; what is not ASCII is left out."""
        table, found = torch.full((256,), -1), bytearray()
        for index, character in enumerate(string.printable):
            table[ord(character)] = FIRST + index
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            found += path.read_bytes()
            if len(found) > 2 * self.characters:
                break
        tokens = table[torch.frombuffer(found, dtype=torch.uint8).long()]
        return tokens[tokens >= 0][: self.characters]

    @cached_property
    def kinds(self) -> Tensor:
        """What kind of character each token is, shape ``(VOCAB,)``."""
        found = [next(i for i, kind in enumerate(KINDS) if character in kind) for character in string.printable]
        return torch.tensor([0] * FIRST + found)

    def pooled(self, size: int, *, grey: bool = False) -> Tensor:
        """Shrink all images to a size by means over squares, and normalise them again."""
        if (size, grey) not in self._pooled:
            x = functional.avg_pool2d(self.cifar10.train_x, 32 // size)
            x = x.mean(1, keepdim=True) if grey else x
            std, mean = torch.std_mean(x, (0, 2, 3), keepdim=True)
            self._pooled[size, grey] = (x - mean) / std
        return self._pooled[size, grey]

    def images(self, n: int, generator: Generator, *, size: int = 16, grey: bool = False) -> Batch:
        """Draw images and their classes."""
        rows = torch.randint(self.count, (n,), generator=generator)
        return self.pooled(size, grey=grey)[rows], self.cifar10.train_y[rows]

    def noisy(self, n: int, generator: Generator, *, size: int = 16, noise: float = 0.5) -> Batch:
        """Draw noisy images, and which of three equally frequent levels the brightness of each clean pixel has."""
        rows = torch.randint(self.count, (n,), generator=generator)
        x, grey = self.pooled(size)[rows], self.pooled(size, grey=True)
        levels = torch.quantile(grey[:: self.count // 500].flatten(), torch.tensor([1 / 3, 2 / 3]))
        y = torch.bucketize(grey[rows].squeeze(1), levels)
        return x + noise * torch.randn(x.shape, generator=generator), y

    def texts(self, n: int, generator: Generator, *, length: int = 48, gap: int = 0) -> Batch:
        """Draw stretches of text, and as labels those that begin so many characters later."""
        starts = torch.randint(len(self.text) - length - gap, (n, 1), generator=generator) + torch.arange(length)
        return self.text[starts], self.text[starts + gap]

    def next_kind(self, n: int, generator: Generator, *, length: int = 32) -> Batch:
        """Draw stretches of text, and the kind of the character that follows."""
        tokens, later = self.texts(n, generator, length=length, gap=1)
        return tokens, self.kinds[later[:, -1]]

    def kinds_in_a_row(self, n: int, generator: Generator, *, length: int = 32) -> Batch:
        """Draw the kinds of characters as vectors of zeros and a one, and the kind of the one that follows."""
        tokens, y = self.next_kind(n, generator, length=length)
        return functional.one_hot(self.kinds[tokens], len(KINDS)).float(), y
