"""What a linear map is asked that a pass uses several times, as in a recurrent network, or with two inputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from targetprop.updates.asked import Common, Regression
from targetprop.updates.one_use import OneUse


@dataclass(frozen=True, eq=False)
class SeveralUses(Regression):
    """One regression of the rows of all uses: they are further positions of each sample; see `Regression`.

    Attributes:
        parts: what each use is asked.
        common: what holds for all layers.
    """

    parts: Sequence[OneUse]
    common: Common

    @property
    def name(self) -> str:
        """See `Regression.name`."""
        return self.parts[0].name

    @property
    def inputs(self) -> int:
        """See `Regression.inputs`."""
        return self.parts[0].inputs

    @property
    def outputs(self) -> int:
        """See `Regression.outputs`."""
        return self.parts[0].outputs

    @property
    def even(self) -> bool:
        """See `Regression.even`."""
        return all(part.even for part in self.parts)

    @property
    def times(self) -> int:
        """See `Regression.times`."""
        return len(self.parts)

    @property
    def drawn(self) -> bool:
        """See `Regression.drawn`."""
        return all(part.drawn for part in self.parts)

    def kept(self, stride: int) -> int:
        """See `Regression.kept`."""
        each, all_of_them = self._strides(stride)
        kept = sum(part.kept(each) for part in self.parts) if self.even else 1
        return -(-kept // all_of_them)

    def some_a(self, samples: slice, stride: int) -> Tensor:
        """See `Regression.some_a`."""
        return self._joined(lambda part, some, each: part.some_a(some, each), samples, stride)

    def some_felt(self, stride: int) -> Tensor:
        """See `Regression.some_felt`."""
        return self._joined(lambda part, _, each: part.some_felt(each), slice(None), stride)

    def some_dz(self, samples: slice, stride: int) -> Tensor:
        """See `Regression.some_dz`."""
        return self._joined(lambda part, some, each: part.some_dz(some, each), samples, stride)

    def product(self, dtype: torch.dtype) -> Tensor:
        """See `Regression.product`."""
        found = self.parts[0].product(dtype)
        for part in self.parts[1:]:
            found += part.product(dtype)
        return found

    def _count(self) -> int:
        return sum(part.positions for part in self.parts) if self.even else 1

    def _strides(self, stride: int) -> tuple[int, int]:
        """Split a stride into one within each use and one over what these give: patches are not made to be left out."""
        return (stride, 1) if self.parts[0].convolved else (1, stride)

    def _joined(self, give: Callable[[OneUse, slice, int], Tensor], samples: slice, stride: int) -> Tensor:
        """Put what the uses give side by side, sample by sample."""
        if not self.even:
            return torch.cat([give(part, slice(None), 1) for part in self.parts])[samples]
        each, all_of_them = self._strides(stride)
        found = [give(part, samples, each) for part in self.parts]
        kept = [part.kept(each) for part in self.parts]
        rows = [v.reshape(len(v) // count, count, v.shape[-1]) for count, v in zip(kept, found, strict=True)]
        return torch.cat(rows, 1)[:, ::all_of_them].flatten(0, 1)
