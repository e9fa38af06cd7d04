"""Where a pass lets no gradient through although its output follows its input, and what would not learn by that."""

from collections.abc import Iterable, Iterator

from targetprop.layers.segment import Segment
from targetprop.layers.tape import Call, Tape, Value

_FLAT = {"sign", "sgn", "round", "floor", "ceil", "trunc", "fix", "heaviside", "floor_divide", "bucketize"}
_PASS_ON = "let an autograd function pass its changes, or add them as in x + (x.sign() - x).detach()"


def is_flat(call: Call) -> bool:
    """Whether a call lets no change through though its output follows its input."""
    led = any(value.data and value.trained for value in call.inputs)
    return led and (call.name in _FLAT or call.opaque) and not any(value.adopted for value in call.outputs)


def stops_inside(segments: list[Segment]) -> Iterator[str]:
    """Name the calls that let no change through to parameters of their own layer."""
    for segment in segments:
        trained = False
        for call in segment.calls:
            own = call.trains
            if is_flat(call) and (trained or own):
                whose, cure = (
                    ("parameters of its own", "move them to a module before it, or freeze them")
                    if own
                    else ("the parameters before it", "let the layer end at its parameters, or " + _PASS_ON)
                )
                yield f"layer {segment.name}: {call.path or call.name} lets no gradient through to {whose}; {cure}"
                break
            trained = trained or own


def stops_below(calls: list[Call], results: Iterable[Value]) -> list[str]:
    """Name the calls on the way to the results that let no change through though their output follows their input."""
    found: list[str] = []
    wanted = {id(value) for value in results}
    for call in reversed(calls):
        if any(value.trained and id(value) in wanted for value in call.outputs):
            wanted.update(id(value) for value in call.inputs if value.trained)
            if is_flat(call):
                found.append(
                    f"{call.path or 'the model'}: {call.name} has no derivative, so nothing below it would learn;"
                    f" {_PASS_ON}"
                )
    return found


def cut_off(tape: Tape, segments: list[Segment], *, derivatives: bool) -> list[str]:
    """Name the modules that let no gradient through, if parameters below them are cut off by that."""
    working = [call for call in tape.calls if any(value.data for value in call.outputs)]
    used = {value.parameter for call in working for value in call.inputs if value.trained and value.parameter}
    reached = {id(value) for value in tape.results}
    for call in reversed(tape.calls):
        if any(id(value) in reached for value in call.outputs):
            reached.update(id(value) for value in call.inputs if value.trained)
            used -= {value.parameter for value in call.inputs}
    if not used:
        return []
    cure = "choose a method whose decoders are learned, such as 'dtp'" if derivatives else "make it a part of the model"
    names = tape.opaque or [f"layer {s.name}" for s in segments if derivatives and not s.followed]
    return [f"{name} lets no gradient through, so nothing below it would learn; {cure}" for name in names]
