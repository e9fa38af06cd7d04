"""From a model to its plan: it is run once and recorded, and nothing of that stays."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from targetprop.layers.inputs import Stack, call, split_labels
from targetprop.layers.layer import Cut
from targetprop.layers.loss import evaluate_loss, modules_of
from targetprop.layers.plan import Plan, make_plan
from targetprop.layers.recorder import record
from targetprop.layers.sites import tensors_in
from targetprop.layers.tape import Tape
from targetprop.layers.undone import undone, unseen


@dataclass(frozen=True)
class Cutting:
    """How a model is cut into layers.

    Attributes:
        style: the rule.
        ends: names of modules after each of which a layer ends, where the rule does not decide.
        derivatives: whether changes go down through the derivatives of layers; where not, modules that autograd cannot
            see into count as one call each.
        own: classes of modules that do so anyway.
        by_maps: whether recurrent layers of torch are written out, so that what each step asks of their maps is seen.
    """

    style: Cut = "post-activation"
    ends: Sequence[str] | None = None
    derivatives: bool = True
    own: tuple[type[nn.Module], ...] = ()
    by_maps: bool = False


def plan_model(
    model: nn.Module,
    root: nn.Module,
    loss: Callable[[Any, Any], Any],
    cutting: Cutting,
    x: Any,
    y: Any = None,
    *,
    labelled: bool = True,
    silent: bool = True,
) -> Plan:
    """Run a model once to make its plan.

    Args:
        model: the model.
        root: the module after whose members weights are named.
        loss: ``loss(output, y)``.
        cutting: how it is cut.
        x: the model's input: a tensor, a tuple of them, or a dictionary by keyword.
        y: labels.
        labelled: whether there are labels for the loss; otherwise the plan ends with the model's output.
        silent: leave the user's forward hooks out, which are to see nothing but batches.

    Returns:
        The plan.

    Raises:
        ValueError: the model cannot be trained.
    """
    x, y = tree_map(_renamed, x), tree_map(_renamed, y)  # people pass one tensor as input and labels
    inputs, labels = split_labels(x)
    finish = (lambda output: evaluate_loss(loss, output, y)) if labelled else None
    given = [*labels, *tensors_in(y)]
    closed = {name: m for name, m in model.named_modules() if isinstance(m, cutting.own)}
    while True:
        run = partial(
            record, [model, root], lambda: call(model, x), inputs, finish, given, closed, by_maps=cutting.by_maps
        )
        if silent:
            tape = unseen(model, run, modules_of(loss))
        else:
            with undone([*model.modules(), *modules_of(loss)]):
                tape = run()
        found = {} if cutting.derivatives else _innermost(tape.opaque, model)
        if found.keys() <= closed.keys():
            break
        closed |= found
    if tape.problems:
        raise ValueError(tape.problems[0])
    ends = _where_layers_end(model, cutting.ends, tape)
    _check_trained(tape, labelled)
    plan = make_plan(tape, cutting.style, ends, derivatives=cutting.derivatives)
    if plan.problems:
        raise ValueError(plan.problems[0])
    if not plan.layers and not cutting.derivatives:
        raise ValueError(
            "no layer can end anywhere, for the model never goes on with one tensor of real numbers alone; choose a"
            " method of mirrors, such as 'l-drl'"
        )
    return plan


def _check_trained(tape: Tape, labelled: bool) -> None:
    related = any(value.data for value in tape.results)
    unrelated = labelled and tape.output is not None and tape.output.data and tape.output.trained
    if tape.results and not related and not unrelated:
        if tape.opaque:
            return  # the plan says which modules let nothing through
        raise ValueError(
            "the output depends on parameters, and not on the input by torch calls; put what is not torch, such as"
            " NumPy, into a module of its own, and choose a method whose decoders are learned, such as 'dtp'"
        )
    if not related:
        raise ValueError(
            "the loss does not depend on the output; compute it from that, without detach or item"
            if labelled
            else "the model has no trainable parameter; call requires_grad_(True) on those to train"
        )


def _where_layers_end(model: nn.Module, names: Sequence[str] | None, tape: Tape) -> dict[str, int] | None:
    """Say at which torch call each layer ends, by its name; None where the style decides."""
    returned: Mapping[str, Sequence[int]] = tape.ends
    if names is None:
        return model.ends(returned) if isinstance(model, Stack) else None
    for name in names:
        if name not in returned:
            near = get_close_matches(name, returned, 3, 0.3) or list(returned)[1:4]
            raise ValueError(f"layers names module {name!r}, which the model does not run; it runs {', '.join(near)}")
    each = [(place, name, turn) for name in names for turn, place in enumerate(returned[name])]
    return {f"{name}@{turn + 1}" if turn else name: place for place, name, turn in sorted(each)}


def _innermost(opaque: Iterable[str], model: nn.Module) -> dict[str, nn.Module]:
    """Find the modules that let no gradient through, but neither those around them nor those made on the way."""
    named = [name.split(": ") for name in opaque]
    found = {name: m for name, kind in named if type(m := model.get_submodule(name)).__name__ == kind}
    around = {
        name for name in found for other in found if other != name and other.startswith(f"{name}." if name else "")
    }
    return {name: m for name, m in found.items() if name not in around}


def _renamed(t: Any) -> Any:
    return t.view_as(t) if isinstance(t, Tensor) else t
