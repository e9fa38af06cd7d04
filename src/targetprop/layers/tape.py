"""The tape: which torch calls a forward pass makes, and which values flow between them."""

from dataclasses import dataclass, field

import torch

from targetprop.layers.sites import Place, Site

LOOKUPS = {"embedding", "embedding_bag"}


@dataclass(eq=False)
class Value:
    """One tensor at one time.

    Attributes:
        shape: its shape.
        data: whether it depends on the model's inputs.
        trained: whether autograd leads from it to trainable parameters.
        made: index of the call that made it; None for inputs, parameters and constants.
        output: its number among the outputs of that call.
        labels: whether it depends on labels.
        parameter: name, if it is a parameter.
        fixed: whether nothing writes into its memory later, and it goes by one name.
        real: whether it holds real numbers: where it does not, nothing ends.
        adopted: whether it was made inside an autograd function of the user's, whose own backward pass counts.
    """

    shape: torch.Size
    data: bool
    trained: bool
    made: int | None = None
    output: int = 0
    labels: bool = False
    parameter: str | None = None
    fixed: bool = True
    real: bool = True
    adopted: bool = False


@dataclass(eq=False)
class Call:
    """One torch call.

    Attributes:
        index: its number among all torch calls of the pass, counted from 0.
        name: the function's name.
        path: name of the module that made it.
        inputs: the values that it was given.
        places: the way to each of them in the pair of its positional and its keyword arguments.
        outputs: the values that it made.
        sites: where it uses weights.
        gains: whether its backward pass reads other parameters, such as the gain of a norm.
        random: whether it drew random numbers.
        opaque: whether it is a module that let no gradient through.
        closed: whether it is a module that counts as one call.
        writes: the way to each tensor that it was given and wrote into the memory of.
        rewritten: other views of that memory, before and after it.
    """

    index: int
    name: str
    path: str
    inputs: list[Value]
    places: list[Place] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    sites: tuple[Site, ...] = ()
    gains: bool = False
    random: bool = False
    writes: tuple[Place, ...] = ()
    rewritten: list[tuple[Value, Value]] = field(default_factory=list)
    opaque: bool = False
    closed: bool = False

    @property
    def trains(self) -> bool:
        """Whether it is given trained parameters, or values made from such alone."""
        return any(value.trained and not value.data for value in self.inputs)


@dataclass(eq=False)
class Tape:
    """A recorded pass.

    Attributes:
        calls: the calls that made a value of tensors.
        start: the first input, if it leads to something that is trained below.
        results: the values in the loss, or in the output where there is none, that lead to parameters.
        output: the model's output, if it is one tensor.
        total: how many torch calls the model made.
        signature: a hash of their names in order.
        whole: both, the calls of the loss included.
        problems: why the model cannot be trained, with the module's name and the way out.
        ends: indices of the last torch call before a module returned, by its name.
        custom: whether autograd functions of the user's were called.
        by_maps: whether recurrent layers of torch were written out.
        opaque: modules that let no gradient through, by name and kind.
        closed: names of the modules that count as one call each.
        beside: trained tensors that are no parameters of the model, such as those of the loss, by a name made up.
    """

    calls: list[Call] = field(default_factory=list)
    start: Value | None = None
    results: list[Value] = field(default_factory=list)
    output: Value | None = None
    total: int = 0
    signature: int = 0
    whole: tuple[int, int] = (0, 0)
    problems: list[str] = field(default_factory=list)
    ends: dict[str, list[int]] = field(default_factory=dict)
    custom: bool = False
    by_maps: bool = False
    opaque: list[str] = field(default_factory=list)
    closed: tuple[str, ...] = ()
    beside: dict[str, torch.Tensor] = field(default_factory=dict)
