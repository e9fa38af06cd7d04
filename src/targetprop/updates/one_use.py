"""What one use of a linear map is asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from targetprop.layers import MapUse
from targetprop.layers.convolution import Convolution, has_patches, patches
from targetprop.precision import at_least_float32
from targetprop.updates.asked import Common, Regression


@dataclass(frozen=True, eq=False)
class OneUse(Regression):
    """A regression of the rows of one use; see `Regression`.

    Attributes:
        use: the use of the weight.
        wanted: changes wanted of the outputs, in their shape, at least float32.
        common: what holds for all layers.
        felt: changes that drawn labels ask for, shape of the outputs; None where none were drawn.
    """

    use: MapUse
    wanted: Tensor
    common: Common
    felt: Tensor | None = None

    @property
    def name(self) -> str:
        """See `Regression.name`."""
        return self.use.site.key

    @property
    def inputs(self) -> int:
        """See `Regression.inputs`."""
        return map_shape(self.use)[1]

    @property
    def outputs(self) -> int:
        """See `Regression.outputs`."""
        return self.wanted.shape[1 if self.convolved else -1]

    @property
    def even(self) -> bool:
        """See `Regression.even`."""
        return self._each > 0 or not len(self.wanted)

    @property
    def times(self) -> int:
        """See `Regression.times`."""
        return 1

    @property
    def drawn(self) -> bool:
        """See `Regression.drawn`."""
        return self.felt is not None

    @property
    def convolved(self) -> bool:
        """Whether the rows are patches."""
        return self.use.site.kind == "conv"

    def kept(self, stride: int) -> int:
        """See `Regression.kept`."""
        images = self._images if self.convolved else 1
        return images * -(-self.positions // images // stride)

    def some_a(self, samples: slice, stride: int) -> Tensor:
        """See `Regression.some_a`."""
        if self.convolved:
            first, last = (end if end is None else end * self._images for end in (samples.start, samples.stop))
            return self._with_constant(at_least_float32(patches(self.use, slice(first, last), stride)))
        return self._thin(self._inputs[samples], stride)

    def some_felt(self, stride: int) -> Tensor:
        """See `Regression.some_felt`."""
        assert self.felt is not None
        return self._thin(self._rows(self.felt), stride)

    def some_dz(self, samples: slice, stride: int) -> Tensor:
        """See `Regression.some_dz`."""
        return self._thin(self._rows(self.wanted)[samples], stride)

    def product(self, dtype: torch.dtype) -> Tensor:
        """See `Regression.product`."""
        if not self.convolved:
            return self.dz.to(dtype).T @ self.a.to(dtype)
        wanted = self.wanted.to(dtype)
        assert self.use.input is not None
        found = Convolution(self.use, self.use.input).outer(self.use.input, wanted).flatten(1)
        if self.use.bias is None:
            return found
        return torch.cat([found, wanted.flatten(2).sum((0, 2)).unsqueeze(1)], 1)

    def _count(self) -> int:
        return self._each or (self.wanted.shape[2:] if self.convolved else self.wanted.shape[1:-1]).numel()

    @property
    def _each(self) -> int:
        return self.common.batch.each(self.wanted.numel() // max(1, self.outputs))

    @cached_property
    def _inputs(self) -> Tensor:
        """The inputs of a product, shape ``(n, positions, d)``."""
        assert self.use.input is not None
        return self._with_constant(at_least_float32(self._by_sample(self.use.input)))

    def _with_constant(self, a: Tensor) -> Tensor:
        return a if self.use.bias is None else nn.functional.pad(a, (0, 1), value=1.0)

    @property
    def _images(self) -> int:
        """How many inputs of a convolution each sample has, such as the pictures of a film."""
        return max(1, self.positions // max(1, self.wanted.shape[2:].numel()))

    def _rows(self, outputs: Tensor) -> Tensor:
        """See outputs as rows, shape ``(n, positions, k)``."""
        return self._by_sample(outputs.movedim(1, -1) if self.convolved else outputs)

    def _by_sample(self, v: Tensor) -> Tensor:
        """Put the samples first, and all positions second; rows of no sample count as samples."""
        n = self.common.batch.rows
        if v.dim() > 2 and len(v) != n and v.shape[1] == n:  # the first axis is time
            v = v.transpose(0, 1)
        return v.reshape(v.shape[:-1].numel() // self.positions, self.positions, v.shape[-1])

    def _thin(self, v: Tensor, stride: int) -> Tensor:
        """Flatten all positions, or leave some of each image out."""
        if stride > 1:
            v = v.unflatten(1, (self._images, -1))[:, :, ::stride] if self.convolved else v[:, ::stride]
        return v.flatten(0, -2)


def map_shape(use: MapUse) -> tuple[int, int]:
    """Give the number of outputs ``k`` and of inputs ``d`` of a map, with the constant of the bias."""
    weight = use.weight
    k, d = (weight.shape[1], len(weight)) if use.site.kind == "matmul" else (len(weight), weight[0].numel())
    return k, d + (use.bias is not None)


def is_solved(use: MapUse) -> bool:
    """Say whether a map has a closed form: its weight is a parameter, and it takes rows of one input."""
    weight = use.weight
    trained = isinstance(weight, nn.Parameter) and weight.requires_grad and weight.numel() > 0
    if not trained or use.input is None:
        return False
    return use.site.kind in ("linear", "matmul") or (use.site.kind == "conv" and has_patches(use))


def are_solved(uses: Sequence[MapUse]) -> bool:
    """Say whether the uses of one weight in the layers have a closed form together: there are no others, and alike."""
    first = uses[0]
    alike = all(u.site.kind == first.site.kind and u.weight is first.weight and u.bias is first.bias for u in uses)
    return alike and len(uses) == first.times and all(map(is_solved, uses))
