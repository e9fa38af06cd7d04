"""What a step's numbers are watched for, and what is said where they are not finite."""

from torch import Tensor

from targetprop.forward import Record
from targetprop.guard import Guard

BAD_INPUT = "the input holds NaN or infinite values, or some too large to be squared; clean the data before training"
BAD_LOSS = "the loss or its gradient is NaN or infinite though the outputs are finite; check the labels and the loss"
LOWER = "lower the learning rate or load an earlier checkpoint"
CURE = "look for roots, logarithms and divisions at zero"


def watch_forward(guard: Guard, x: Tensor, record: Record) -> None:
    """Watch the activations of every layer.

    Args:
        guard: what watches.
        x: the input.
        record: the forward pass.
    """
    guard.watch(BAD_INPUT, x)
    for index, layer in enumerate(record.layers):
        own = (layer.h, *layer.inner[:-1]) if record.places.owns(index) else ()
        guard.watch(f"layer {layer.layer.name} returns NaN or infinite values; {LOWER}", *own)


def watch_targets(guard: Guard, record: Record, deltas: list[Tensor]) -> None:
    """Watch the change of every layer.

    Args:
        guard: what watches.
        record: the forward pass.
        deltas: ``Δ_l`` of this process' layers.
    """
    found = dict(zip(record.own, deltas, strict=True))
    for index, layer in enumerate(record.layers):
        own = (found[index],) if index in found else ()
        guard.watch(f"the target of layer {layer.layer.name} is NaN or infinite; lower output_target.beta", *own)
