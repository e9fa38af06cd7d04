"""A layer that is a stretch of a model's forward pass, and what a pass left of it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.layers.chain import Layer
from targetprop.layers.record import LayerRecord, MapUse
from targetprop.layers.repeat import Step, repeat
from targetprop.layers.segments import Segment
from targetprop.layers.tape import LOOKUPS


@dataclass(frozen=True, eq=False)
class SegmentLayer(Layer):
    """A layer that is a stretch of a model's forward pass.

    Attributes:
        segment: the stretch.
        model: the model.
    """

    segment: Segment | None = None
    model: nn.Module | None = None

    def kinds(self) -> list[str]:
        """Say which weights the layer applies, in order."""
        assert self.segment is not None
        found: list[str] = []
        for call in self.segment.calls:
            for site in call.sites:
                short = site.key.removesuffix("weight").rstrip("._").removeprefix(self.name).strip(".")
                found.append(short or call.name)
        lookups = [call.name for call in self.segment.calls if call.name in LOOKUPS]
        return list(dict.fromkeys(found or lookups)) or [self.segment.calls[-1].name]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the trainable parameters ``θ_l``."""
        assert self.model is not None and self.segment is not None
        named = dict(self.model.named_parameters())
        yield from (named[name] for name in self.segment.parameters)


@dataclass(frozen=True, eq=False)
class SegmentRecord(LayerRecord):
    """What a pass left of one stretch.

    Attributes:
        tensors: its trainable parameters, and values made from parameters alone that it shares with other layers.
        uses: its uses of weights.
        start: where its graph begins; None for the first layer.
        steps: its calls, to be made again; empty unless asked for.
        begin: what the recording calls its input.
        full: its whole input, where the record is restricted to some samples.
    """

    tensors: tuple[Tensor, ...] = ()
    uses: tuple[MapUse, ...] = ()
    start: Tensor | None = None
    steps: tuple[Step, ...] = ()
    begin: Any = None
    full: Tensor | None = None

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The trainable parameters, and the shared values made from some."""
        return self.tensors

    @property
    def maps(self) -> tuple[MapUse, ...]:
        """The uses of weights."""
        return self.uses

    @property
    def _start(self) -> Tensor | None:
        return self.start

    def f(self, x: Tensor) -> Tensor:
        """Make the calls of the layer again on another input; see `targetprop.layers.repeat`."""
        assert isinstance(self.layer, SegmentLayer) and self.layer.segment is not None
        end = self.layer.segment.end
        assert end is not None
        whole = self.x if self.full is None else self.full
        rows = len(x)
        if x.dtype is torch.float64:  # a model may cast on its way
            x = x.to(self.x.dtype)
        if rows < len(whole):
            x = torch.cat([x, whole[rows:].to(x.dtype)])
        if x.stride() != whole.stride():  # a model may ask for views that other strides do not allow
            x = torch.empty_strided(x.shape, whole.stride(), dtype=x.dtype, device=x.device).copy_(x)
        y = repeat(self.steps, self.begin, end, x)
        return y[:rows] if rows < len(whole) else y

    def head(self, rows: int) -> "SegmentRecord":
        """Restrict to the first samples; what is repeated is still the whole batch."""
        full = self.x if self.full is None else self.full
        return replace(self, x=self.x[:rows], y=self.h[:rows], full=full)
