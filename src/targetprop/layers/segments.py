r"""Cutting a recorded pass into layers.

After every call, count the values that lead to parameters, depend on the data, and are still needed for the loss. Where
there is exactly one, a layer can end: it is an activation ``h_l`` that all that follows is a function of. Calls between
two such places are grouped so that every layer has a map, by one of two rules:

* *post-activation*, ``f(h) = σ(Wh + b)``: a layer starts at each map (Lee 2015, Ernoult 2022);
* *pre-activation*, ``f(h) = Wσ(h) + b``: a layer ends at each map (Bengio 2020); linear in its parameters.

What feeds a layer from beside, such as masks, positions or the raw input, is no target.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

from targetprop.layers.gradient_stops import cut_off, is_flat, stops_below, stops_inside
from targetprop.layers.pieces import split
from targetprop.layers.repeat import repeated_calls
from targetprop.layers.segment import Segment
from targetprop.layers.tape import LOOKUPS, Call, Tape, Value


@dataclass(eq=False)
class _Atom:
    """Calls between two places where a layer could end."""

    calls: list[Call]
    end: Value
    maps: bool = field(init=False)
    flat: bool = field(init=False)

    def __post_init__(self) -> None:
        self.maps = any(_applies(call) or _looks_up(call) for call in self.calls)
        self.flat = any(is_flat(call) for call in self.calls)


def cut(
    tape: Tape, style: str = "post-activation", ends: Mapping[str, int] | None = None, *, derivatives: bool = True
) -> list[Segment]:
    """Cut a tape into layers.

    Args:
        tape: the recorded pass, up to the loss.
        style: "post-activation" or "pre-activation".
        ends: the user's own cuts: index of the last torch call of each layer by its name; None to group by `style`.
        derivatives: whether changes go down through the derivatives of layers; otherwise a layer may begin with what
            has none, and only what trains its own parameters needs one.

    Returns:
        The segments in order; the last one, without an end, leads to what the function returned, and may be empty.
    """
    needed = _needed(tape)
    atoms, rest = _atoms(needed, _last_uses(needed, tape.results), tape.total)
    if ends is None:
        layers = _numbered([_segment(group) for group in _group(atoms, style)])
    else:
        tape.problems += _between(atoms, rest, ends)
        layers = [replace(_segment(group), name=name) for name, group in _group_at(atoms, ends).items()]
    found = [*layers, Segment("loss", tuple(rest), None)]
    segments = _with_parameters(found, needed)
    flat = stops_below(needed, tape.results) if derivatives else stops_inside(segments)
    segments = _with_pieces(segments, tape.start)
    tape.problems += [*flat, *cut_off(tape, segments, derivatives=derivatives)]
    return segments


def _with_pieces(segments: list[Segment], start: Value | None) -> list[Segment]:
    """Say how each layer can be made again from its input, which is the end of the one below."""
    found: list[Segment] = []
    for number, segment in enumerate(segments):
        if start is not None and segment.end is not None:
            segment = _led_on(number, segment, start, segment.end)
        found.append(segment)
        start = segment.end
    return found


def _led_on(number: int, segment: Segment, start: Value, end: Value) -> Segment:
    """Find the calls that lead from the input of a layer to its output, and whether autograd follows them there."""
    every, followed = (
        split(list(repeated_calls(number, segment.calls, start, trained=trained)), start, end)
        for trained in (False, True)
    )
    return replace(segment, start=start, pieces=every, followed=bool(followed))


def _needed(tape: Tape) -> list[Call]:
    """Keep the calls that lead to the results; caches and maps of attention that nobody uses are left out."""
    wanted = {id(value) for value in tape.results}
    kept: list[Call] = []
    for call in reversed(tape.calls):
        if any(id(value) in wanted for value in call.outputs):
            kept.append(call)
            wanted.update(id(value) for value in call.inputs)
    return kept[::-1]


def _last_uses(calls: Iterable[Call], results: Iterable[Value]) -> dict[int, float]:
    uses = {id(value): float(call.index) for call in calls for value in call.inputs}
    return uses | {id(value): float("inf") for value in results}


def _atoms(calls: list[Call], last: dict[int, float], total: int) -> tuple[list[_Atom], list[Call]]:
    """Split the model's calls where one value is alive that a layer can end with; what is left leads to the loss."""
    atoms: list[_Atom] = []
    open_calls: list[Call] = []
    alive: dict[int, Value] = {}
    for place, call in enumerate(calls):
        open_calls.append(call)
        begun = any(v.labels for v in call.inputs) and any(v.data and v.trained for v in call.inputs)
        if begun or call.index >= total:  # the loss begins where activations meet labels, or after the model
            return atoms, [*open_calls, *calls[place + 1 :]]
        alive |= {id(v): v for v in call.outputs if v.data and v.trained and last.get(id(v), -1) > call.index}
        alive = {key: value for key, value in alive.items() if last[key] > call.index}
        following = calls[place + 1].index if place + 1 < len(calls) else float("inf")
        if len(alive) == 1 and following > call.index:
            (value,) = alive.values()
            if value.made == call.index and value.fixed and value.real and len(value.shape) > 0:
                atoms.append(_Atom(open_calls, value))
                open_calls = []
    return atoms, open_calls


def _group(atoms: list[_Atom], style: str) -> list[list[_Atom]]:
    groups: list[list[_Atom]] = []
    for atom in atoms:
        full = bool(groups) and any(a.maps for a in groups[-1])
        if not groups or (full and (atom.maps or atom.flat or style == "pre-activation")):
            groups.append([])
        groups[-1].append(atom)
    if len(groups) > 1 and not any(a.maps for a in groups[-1]):
        groups[-2:] = [groups[-2] + groups[-1]]
    return groups


def _group_at(atoms: list[_Atom], ends: Mapping[str, int]) -> dict[str, list[_Atom]]:
    edges = [-1, *ends.values()]
    groups = [[a for a in atoms if low < a.calls[-1].index <= high] for low, high in pairwise(edges)]
    found = {name: group for name, group in zip(ends, groups, strict=True) if group}
    rest = [a for a in atoms if a.calls[-1].index > edges[-1]]
    if rest and any(a.maps for a in rest):
        found[_segment(rest).name or "output"] = rest
    elif rest and found:
        found[list(found)[-1]] += rest
    return found


def _between(atoms: list[_Atom], rest: list[Call], ends: Mapping[str, int]) -> Iterator[str]:
    """Name the places where the user lets a layer end, and another value than that goes on."""
    stretches = [*(atom.calls for atom in atoms), rest]
    for name, high in ends.items():
        for calls in stretches:
            if any(call.index <= high for call in calls) and any(call.index > high for call in calls):
                yield (
                    f"no layer can end after {name!r}: more than its output goes on from there, or it is overwritten in"
                    " place; let a layer end after a module that all later ones depend on through its output alone,"
                    " such as a whole block, or set inplace=False"
                )


def _segment(group: list[_Atom]) -> Segment:
    calls = tuple(call for atom in group for call in atom.calls)
    mapped = [c.path for c in calls if _applies(c)] or [c.path for c in calls if _looks_up(c)]
    paths = mapped or [c.path for c in calls if c.trains]
    return Segment(_common(paths or [calls[-1].path]), calls, group[-1].end)


def _applies(call: Call) -> bool:
    """Whether it applies weights, by itself or as a module that counts as one call."""
    return bool(call.sites) or (call.closed and call.trains)


def _looks_up(call: Call) -> bool:
    return call.name in LOOKUPS and any(v.data for v in call.outputs)


def _common(paths: list[str]) -> str:
    parts = [path.split(".") for path in paths if path]
    shared: list[str] = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return ".".join(shared)


def _with_parameters(segments: list[Segment], calls: list[Call]) -> list[Segment]:
    """Say which parameters each segment uses, and which values made from parameters alone it shares with others."""
    makers = {id(v): call for call in calls for v in call.outputs}
    users: dict[int, set[int]] = {}
    own: list[list[Value]] = []
    for number, segment in enumerate(segments):
        own.append([])
        used = [
            v for c in segment.calls if any(o.data for o in c.outputs) for v in c.inputs if v.trained and not v.data
        ]
        while used:
            value = used.pop()
            if number not in users.setdefault(id(value), set()):
                users[id(value)].add(number)
                own[-1].append(value)
                used += [v for v in makers[id(value)].inputs if v.trained] if id(value) in makers else []
    shared = {key for key, numbers in users.items() if len(numbers) > 1}
    return [
        replace(
            segment,
            parameters=tuple(dict.fromkeys(v.parameter for v in values if v.parameter)),
            derived=tuple(v for v in values if not v.parameter and id(v) in shared),
        )
        for segment, values in zip(segments, own, strict=True)
    ]


def _numbered(segments: list[Segment]) -> list[Segment]:
    """Give every segment a name of its own."""
    seen: dict[str, int] = {}
    named: list[Segment] = []
    for segment in segments:
        name = segment.name or "model"
        seen[name] = seen.get(name, 0) + 1
        name = name if seen[name] == 1 else f"{name}@{seen[name]}"
        named.append(replace(segment, name=name))
    return named
