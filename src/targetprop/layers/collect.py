"""What a pass has left, layer by layer."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from targetprop.layers.graph import leaves_of
from targetprop.layers.layer import Layer
from targetprop.layers.plan import Plan
from targetprop.layers.record import LayerRecord, LossGradient
from targetprop.layers.runner import Runner


def collect(
    plan: Plan, runner: Runner, parameters: Mapping[str, Tensor], x: Tensor, root: nn.Module
) -> list[LayerRecord]:
    """Collect the records of all layers, and of what follows the last of them.

    Args:
        plan: the plan of the pass.
        runner: what has run it.
        parameters: what is trained, by name.
        x: the input of the first layer.
        root: the module after whose members parameters are named.

    Returns:
        A record per segment.
    """
    if plan.segments[0].start is not None:
        runner.stretches[0].start = x
    records: list[LayerRecord] = []
    for segment, stretch in zip(plan.segments, runner.stretches, strict=True):
        shared = [runner.derived[v.made or 0, v.output][0] for v in segment.derived]
        tensors = (*(parameters[name] for name in segment.parameters), *shared)
        given = x.detach() if stretch.start is None else stretch.start.detach()
        end = given if stretch.end is None else stretch.end
        maps, steps = tuple(stretch.maps), tuple(stretch.steps)
        records.append(LayerRecord(Layer(segment, root), given, end, tensors, maps, stretch.start, steps))
    return records


def differentiate(rest: LayerRecord, value: Tensor, known: set[Tensor]) -> LossGradient:
    """Differentiate a loss in ``h_L``, and in the parameters that it reaches beside, its own among them.

    Args:
        rest: the record of what follows the last layer.
        value: the loss.
        known: all leaves that are the model's, or were made in the pass.

    Returns:
        The loss and its gradients.
    """
    top = [] if rest.start is None else [rest.start]
    parameters = [*rest.parameters, *(leaf for leaf in leaves_of([value]) if leaf not in known)]
    found = torch.autograd.grad(value, [*top, *parameters], allow_unused=True)
    beside = zip(parameters, found[len(top) :], strict=True)
    gradient = found[0] if top and found[0] is not None else torch.zeros_like(rest.x)
    return LossGradient(value.detach(), gradient, {p: g for p, g in beside if g is not None})


def named_parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Name the parameters as `torch.nn.Module.named_parameters` does; one that is shared by its first name."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for prefix, module in modules.items():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), (f"{prefix}.{name}" if prefix else name, parameter))
    return dict(found.values())
