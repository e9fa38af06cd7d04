"""Random crops and flips of a batch of images, drawn and applied on the images' own device.

>>> import torch
>>> augment = Augmentation(crop=1).begin_epoch(torch.Generator().manual_seed(0), torch.device("cpu"))
>>> augment(torch.ones(2, 3, 4, 4)).shape
torch.Size([2, 3, 4, 4])
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from targetprop.settings import check_ranges, check_types


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied, each on its own.

    Attributes:
        crop: pixels of zeros put around an image before a piece of its size is cut out, at a random place; 0 for none.
        flip: whether each image is mirrored left to right with probability ½.
    """

    crop: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        check_types(self)
        check_ranges(self, crop=(self.crop >= 0, "a whole number ≥ 0"))

    def begin_epoch(self, seeds: torch.Generator, device: torch.device, own: slice = slice(None)) -> "Variation":
        """Make the function that varies the batches of one epoch.

        Its random numbers follow from one seed, so a run that goes on after an epoch repeats them, and from there on
        nothing travels to the device.
        """
        if not (self.crop or self.flip):
            return Variation(self, None, own)
        seed = int(torch.randint(2**62, (), generator=seeds))
        return Variation(self, torch.Generator(device).manual_seed(seed), own)

    def vary(self, images: Tensor, generator: torch.Generator, n: int, own: slice) -> Tensor:
        """Vary a batch, or this process's part of it."""
        device = images.device
        if self.crop:
            down, right = torch.randint(2 * self.crop + 1, (2, n), generator=generator, device=device)
            images = crop_images(images, self.crop, down[own], right[own])
        if self.flip:
            mirrored = torch.rand(n, 1, 1, 1, generator=generator, device=device) < 0.5
            images = torch.where(mirrored[own], images.flip(3), images)
        return images


@dataclass(frozen=True)
class Variation:
    """Varies the batches of one epoch, one after another."""

    augmentation: Augmentation
    generator: torch.Generator | None  # None where there is nothing to draw
    own: slice  # which images of a batch this process holds

    def __call__(self, images: Tensor, total: int | None = None) -> Tensor:
        """Vary the next batch, of ``total`` images where others hold a part of it; see `Augmentation.vary`."""
        n = len(images) if total is None else total
        return images if self.generator is None else self.augmentation.vary(images, self.generator, n, self.own)


def crop_images(images: Tensor, padding: int, down: Tensor, right: Tensor) -> Tensor:
    """Cut a piece of its own size out of each padded image."""
    height, width = images.shape[2:]
    pieces = pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # (n, channels, down, right, …) views
    return pieces[torch.arange(len(images), device=images.device), :, down, right]
