"""A layer ``h_l = f_l(h_{l-1}; θ_l)``: a stretch of a model's forward pass.

Target propagation gives every layer a target of its own, so it has to know where layers begin and end. Two cuts
are in use, and both describe the same network:

* *post-activation*, ``f(h) = σ(Wh + b)``: a layer starts at each map (Lee 2015, Ernoult 2022);
* *pre-activation*, ``f(h) = Wσ(h) + b``: a layer ends at each map (Bengio 2020); linear in its parameters.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from targetprop.layers.segment import Segment
from targetprop.layers.tape import LOOKUPS

Cut = Literal["post-activation", "pre-activation"]
Model = nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module]


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer ``f_l``.

    Attributes:
        segment: the stretch of the forward pass.
        model: the module after whose members its parameters are named.
        modules: the modules that make it up, where layers are on several processes.
    """

    segment: Segment
    model: nn.Module
    modules: tuple[nn.Module, ...] = ()

    @property
    def name(self) -> str:
        """The qualified name of its map in the model, such as ``"0"`` or ``"encoder.2"``."""
        return self.segment.name

    def kinds(self) -> list[str]:
        """Say which weights the layer applies, in order."""
        found: list[str] = []
        own = self.name.partition("@")[0]
        for call in self.segment.calls:
            if call.closed:
                found.append(call.name)
            for site in call.sites:
                short = site.key.removesuffix("weight").rstrip("._").removeprefix(own).strip(".")
                found.append(short or call.name)
        lookups = [call.name for call in self.segment.calls if call.name in LOOKUPS]
        return list(dict.fromkeys(found or lookups)) or [self.segment.calls[-1].name]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the trainable parameters ``θ_l``, in the order of the model's."""
        own = set(self.segment.parameters)
        yield from (p for name, p in self.model.named_parameters() if name in own)
