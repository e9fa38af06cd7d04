"""The plan of a pass, made from a recording: what is to be done at which torch call.

>>> import torch
>>> from torch import nn
>>> from targetprop.layers.recorder import record
>>> model, x = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)), torch.ones(4, 3)
>>> plan = make_plan(record([model], lambda: model(x), [x]))
>>> [(index, action.cut) for index, action in plan.actions.items()]     # layers end at tanh and at the last map
[(0, None), (1, (0, 0)), (2, (1, 0))]
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from targetprop.layers.repeat import Repeated
from targetprop.layers.segment import Segment
from targetprop.layers.segments import cut
from targetprop.layers.sites import Site
from targetprop.layers.tape import Tape


@dataclass(frozen=True)
class Action:
    """What is to be done at one call.

    Attributes:
        name: the function's name.
        layer: number of the segment that the call belongs to.
        sites: where its backward pass has to read mirrors.
        gains: whether its backward pass has to read copies of other parameters.
        cut: the segment that ends with an output of it, and the number of that output; None if none does.
        derived: which of its outputs are made from parameters alone and used by several segments.
    """

    name: str
    layer: int
    sites: tuple[Site, ...] = ()
    gains: bool = False
    cut: tuple[int, int] | None = None
    derived: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Plan:
    """What a pass does beside running the model.

    Attributes:
        segments: the layers, and the stretch from the last of them to the loss.
        actions: by index of the torch call.
        repeated: the calls that lead through a layer above the first, by index.
        plain: whether the model's output is the last layer's, and the loss uses nothing else of the model.
        total: how many torch calls are to be made: the model's, or where it is not plain those of the loss as well.
        signature: a hash of their names.
        custom: whether autograd functions of the user's are among them.
        by_maps: whether recurrent layers of torch are written out.
        closed: names of the modules that count as one call each.
        beside: trained tensors that are no parameters of the model, by the names that are made up for them.
        problems: why the model cannot be trained.
    """

    segments: tuple[Segment, ...]
    actions: dict[int, Action]
    repeated: dict[int, Repeated]
    plain: bool
    total: int
    signature: int
    custom: bool
    by_maps: bool
    closed: tuple[str, ...]
    beside: Mapping[str, Tensor]
    problems: tuple[str, ...]

    @property
    def layers(self) -> tuple[Segment, ...]:
        """The segments that are layers."""
        return self.segments[:-1]

    @property
    def reached_twice(self) -> bool:
        """Whether what follows the last layer uses parameters, or values made from some, of the layers."""
        last = self.segments[-1]
        return bool(last.derived) or any(set(last.parameters) & set(layer.parameters) for layer in self.layers)

    @cached_property
    def times(self) -> Mapping[str, int]:
        """How often a pass uses each weight, by its key."""
        return Counter(site.key for segment in self.segments for call in segment.calls for site in call.sites)


def make_plan(
    tape: Tape, style: str = "post-activation", ends: Mapping[str, int] | None = None, *, derivatives: bool = True
) -> Plan:
    """Plan passes like a recorded one.

    Args:
        tape: the recording.
        style: the rule by which it is cut.
        ends: the user's own cuts; see `targetprop.layers.segments.cut`.
        derivatives: whether changes go down through the derivatives of layers.

    Returns:
        The plan.
    """
    segments = cut(tape, style, ends, derivatives=derivatives)
    last = segments[-1]
    end = segments[-2].end if len(segments) > 1 else None
    of_model = [name for name in last.parameters if name not in tape.beside]  # the loss may have some of its own
    plain = end is not None and tape.output is end and not (of_model or last.sites)
    actions: dict[int, Action] = {}
    shared = {id(value) for segment in segments for value in segment.derived}
    for number, segment in enumerate(segments):
        for call in segment.calls:
            derived = tuple(value.output for value in call.outputs if id(value) in shared)
            if call.sites or call.gains or derived:
                actions[call.index] = Action(call.name, number, call.sites, call.gains, derived=derived)
        if segment.end is not None and segment.end.made is not None:
            name = next(call.name for call in segment.calls if segment.end in call.outputs)
            action = actions.get(segment.end.made, Action(name, number))
            actions[segment.end.made] = replace(action, cut=(number, segment.end.output))
    total, signature = (tape.total, tape.signature) if plain else tape.whole
    repeated = {found.call.index: found for segment in segments for piece in segment.pieces for found in piece.calls}
    problems = tuple(dict.fromkeys(tape.problems))
    return Plan(
        tuple(segments), actions, repeated, plain, total, signature, tape.custom, tape.by_maps, tape.closed,
        tape.beside, problems,
    )  # fmt: skip
