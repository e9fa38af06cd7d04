"""What a linear map is asked, as a regression: a row per sample and position, or sums over all of them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from targetprop.batch import Batch
from targetprop.belief import Belief
from targetprop.layers import MapUse
from targetprop.layers.convolution import Convolution, has_patches, patches


@dataclass(frozen=True, eq=False)
class Common:
    """What holds for all layers of a step.

    Attributes:
        batch: which samples of the step these are.
        scale: ``β n``: what makes the result a mean over the batch, independent of ``β`` to first order.
        excess: how far the loss is above the least of any output, in units of what is asked of the output, a scalar;
            None for an update that draws no labels.
        belief: the distribution that this is of, if it is known.
        labels: how many labels each sample has.
    """

    batch: Batch
    scale: float
    excess: Tensor | None = None
    belief: Belief | None = None
    labels: int = 1


@dataclass(frozen=True, eq=False)
class Regression:
    """What the linear map of a layer is asked: ``W a`` to change by ``Δz``.

    Rows are made when they are read: those of a convolution, its patches, are many times its input.

    Attributes:
        use: the use of its weight.
        wanted: changes wanted of the outputs, in their shape.
        common: what holds for all layers.
        felt: changes that drawn labels ask for, shape of the outputs; None where none were drawn.
    """

    use: MapUse
    wanted: Tensor
    common: Common
    felt: Tensor | None = None

    @property
    def name(self) -> str:
        """The map's name."""
        return self.use.site.key

    @property
    def inputs(self) -> int:
        """``d``, with the constant of the bias."""
        weight = self.use.weight
        own = len(weight) if self.use.site.kind == "matmul" else weight[0].numel()
        return own + (self.use.bias is not None)

    @property
    def outputs(self) -> int:
        """``k``."""
        return self.wanted.shape[1 if self._convolution else -1]

    @cached_property
    def positions(self) -> int:
        """Rows of one sample, wherever the model has put them."""
        return self._each or (self.wanted.shape[2:] if self._convolution else self.wanted.shape[1:-1]).numel()

    @property
    def even(self) -> bool:
        """Whether all samples have as many rows; else each row counts as a sample."""
        return self._each > 0 or not len(self.wanted)

    @property
    def independent(self) -> int:
        """How many rows of the whole step are independent of each other: no more than there are labels."""
        return self.common.batch.total * min(self.positions, self.common.labels)

    @property
    def scale(self) -> float:
        """``β n`` times the number of positions."""
        return self.common.scale * self.positions

    @cached_property
    def a(self) -> Tensor:
        """Inputs with a constant 1 for the bias, if there is one, shape ``(r, d)``."""
        return self._with_constant(patches(self.use)) if self._convolution else self._inputs.flatten(0, 1)

    @cached_property
    def dz(self) -> Tensor:
        """Changes wanted of the outputs, shape ``(r, k)``."""
        return self._rows(self.wanted).flatten(0, 1)

    def kept(self, stride: int) -> int:
        """Count the rows of a sample that are left where one of so many positions is given."""
        images = self._images if self._convolution else 1
        return images * -(-self.positions // images // stride)

    def some_a(self, samples: slice, stride: int) -> Tensor:
        """Give the inputs of some samples, at some positions.

        Args:
            samples: which samples.
            stride: of how many positions one is given, from the first in each sample.

        Returns:
            Shape ``(rows, d)``.
        """
        if self._convolution:
            first, last = (end if end is None else end * self._images for end in (samples.start, samples.stop))
            return self._with_constant(patches(self.use, slice(first, last), stride))
        return self._thin(self._inputs[samples], stride)

    def some_felt(self, stride: int) -> Tensor:
        """Give what drawn labels ask for, at some positions, shape ``(rows, k)``; see `some_a`."""
        assert self.felt is not None
        return self._thin(self._rows(self.felt), stride)

    def some_dz(self, samples: slice, stride: int) -> Tensor:
        """Give what is wanted of some samples, at some positions, shape ``(rows, k)``; see `some_a`."""
        return self._thin(self._rows(self.wanted)[samples], stride)

    def product(self, dtype: torch.dtype) -> Tensor:
        """Sum ``Δz aᵀ`` over the rows, shape ``(k, d)``."""
        if not self._convolution:
            return self.dz.to(dtype).T @ self.a.to(dtype)
        wanted = self.wanted.to(dtype)
        assert self.use.input is not None
        found = Convolution(self.use, self.use.input).outer(self.use.input, wanted).flatten(1)
        if self.use.bias is None:
            return found
        return torch.cat([found, wanted.flatten(2).sum((0, 2)).unsqueeze(1)], 1)

    @property
    def _each(self) -> int:
        return self.common.batch.each(self.wanted.numel() // max(1, self.outputs))

    @cached_property
    def _inputs(self) -> Tensor:
        """The inputs of a product, shape ``(n, positions, d)``."""
        assert self.use.input is not None
        return self._with_constant(self._by_sample(self.use.input))

    def _with_constant(self, a: Tensor) -> Tensor:
        return a if self.use.bias is None else nn.functional.pad(a, (0, 1), value=1.0)

    @property
    def _convolution(self) -> bool:
        return self.use.site.kind == "conv"

    @property
    def _images(self) -> int:
        """How many inputs of a convolution each sample has, such as the pictures of a film."""
        return max(1, self.positions // max(1, self.wanted.shape[2:].numel()))

    def _rows(self, outputs: Tensor) -> Tensor:
        """See outputs as rows, shape ``(n, positions, k)``."""
        return self._by_sample(outputs.movedim(1, -1) if self._convolution else outputs)

    def _by_sample(self, v: Tensor) -> Tensor:
        """Put the samples first, and all positions second; rows of no sample count as samples."""
        n = self.common.batch.rows
        if v.dim() > 2 and len(v) != n and v.shape[1] == n:  # the first axis is time
            v = v.transpose(0, 1)
        return v.reshape(v.shape[:-1].numel() // self.positions, self.positions, v.shape[-1])

    def _thin(self, v: Tensor, stride: int) -> Tensor:
        """Flatten all positions, or leave some of each image out."""
        if stride > 1:
            v = v.unflatten(1, (self._images, -1))[:, :, ::stride] if self._convolution else v[:, ::stride]
        return v.flatten(0, -2)


def is_solved(use: MapUse) -> bool:
    """Say whether a map has a closed form: its weight is a parameter, and it takes rows of one input."""
    weight = use.weight
    trained = isinstance(weight, nn.Parameter) and weight.requires_grad and weight.numel() > 0
    if not trained or use.input is None:
        return False
    return use.site.kind in ("linear", "matmul") or (use.site.kind == "conv" and has_patches(use))
