r"""What the inverses and targets of a network do, layer by layer: measurements that its owner can act on.

For each layer ``l``, with ``t = ĥ_l`` what its inverse was asked for and ``(x₀, y₀) = (h_{l-1}, h_l)``:

* the contraction factor ``‖I − α J_{f∘g̃}‖`` with ``g̃(u) = x₀ + g(u) − g(y₀)``, or ``‖I − α J_{g∘f}‖`` where the layer
  widens its input (Bengio 2020, arXiv:2007.15139: iterating converges where it is below 1);
* the relative residual ``‖t − f(x)‖ / ‖t − y₀‖`` of the run's own inversion, and after `EXTRA_STEPS` further steps;
* how many samples converge, or diverge, within `TRIAL_STEPS` steps;
* the influence ``‖Δ_L‖ / ‖Δ_l‖``, and the angles of ``Δ_l`` to back-propagation's ``−∂C/∂h_l`` and to Gauss-Newton's
  ``J_{l→L}⁺ Δ_L``; the angle of the layer's ``.grad`` to back-propagation's.

>>> import torch
>>> from torch import nn
>>> from targetprop.decoders import Exact
>>> from targetprop.recipe import Method
>>> _ = torch.manual_seed(0)
>>> net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
>>> transposes = Method(decoder=Exact(w=0.0, damping=1.0))
>>> engine = TargetPropagation(net, nn.MSELoss(), example_input=torch.ones(2, 4), method=transposes)
>>> first, last = inspect_targets(engine, torch.randn(8, 4), torch.randn(8, 3)).layers
>>> first.inverse, last.inverse.kind, f"{first.angle_backprop:.0f}°"
(None, 'linearised, w=0, damping=1', '0°')
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from targetprop.diagnostics.angles import (
    angle,
    backprop_directions,
    gauss_newton_directions,
    median,
    update_gradients,
)
from targetprop.diagnostics.inverse_quality import InverseQuality, asked_inverse, measure_inverse
from targetprop.engine import TargetPropagation
from targetprop.inversion import Status, sample_norm
from targetprop.layers import Record, forked_random_states
from targetprop.layers.undone import evaluating
from targetprop.targets import Targets, propagate


@dataclass(frozen=True)
class LayerInspection:
    """What was measured of one layer; None is what it does not have.

    Attributes:
        name: the layer's name.
        width: values per sample of its output.
        inverse: what was measured of its inverse; the first layer has none.
        influence: ``‖Δ_L‖ / ‖Δ_l‖`` before normalisation, median over samples; infinite where ``Δ_l`` is zero.
        angle_backprop: angle of ``Δ_l`` to back-propagation's, degrees, median over samples.
        angle_gauss_newton: angle of ``Δ_l`` to Gauss-Newton's, degrees, median over samples.
        angle_gradient: angle of the layer's ``.grad`` to back-propagation's, degrees, on the whole batch.
    """

    name: str
    width: int
    inverse: InverseQuality | None = None
    influence: float | None = None
    angle_backprop: float | None = None
    angle_gauss_newton: float | None = None
    angle_gradient: float | None = None


@dataclass(frozen=True)
class Inspection:
    """What was measured of a network.

    Attributes:
        samples: how many samples.
        loss: the loss on them.
        layers: the layers in forward order.
    """

    samples: int
    loss: float
    layers: tuple[LayerInspection, ...]


def inspect_targets(
    engine: TargetPropagation, x: Tensor, y: Tensor, *, on_layer: Callable[[int, int], None] | None = None
) -> Inspection:
    """Measure the inverses and targets of an engine on one batch, and leave everything as it was.

    The network is looked at in eval mode: no dropout, running batch statistics. Nothing is trained; the engine, the
    model, its ``.grad``, mode and statistics, and PyTorch's random state are the same afterwards.

    Args:
        engine: any engine that has inverses.
        x: input, shape ``(n, …)``, on the engine's device.
        y: what the loss compares the output with.
        on_layer: hears of each layer before its inverse is measured: its number, from 1, and how many there are.

    Returns:
        The measurements.

    Raises:
        ValueError: the method is back-propagation, or the batch is empty.
        FloatingPointError: the loss is not finite.
    """
    if not isinstance(engine, TargetPropagation):  # the baseline has none
        problem = f"method {engine.method.name!r} has no inverses to inspect"
        raise ValueError(f"{problem}; train with one that has, targetprop methods lists them")
    if len(x) == 0:
        raise ValueError("the batch is empty; give at least one sample")
    method = engine.method
    with _left_as_it_was(engine), torch.enable_grad():
        record = engine.record(x)
        change = method.output_target(record.output, y, engine.loss)
        if not torch.isfinite(change.loss):
            raise FloatingPointError("the loss on these samples is NaN or infinite; inspect an earlier checkpoint")
        with torch.no_grad():
            found = propagate(record, engine.bank, change.delta, method.inversion, method.propagation, measure=False)
            inverses = _measure_inverses(engine, record, found, on_layer)
        used = list(method.influence(found.deltas, change.delta))
        exact = engine.record(x, exact=True)
        slopes, gradients = backprop_directions(engine, exact, y)
        newton = gauss_newton_directions(exact, change.delta)
        written = update_gradients(engine, record, used, change, y)
    layers = [
        LayerInspection(
            name=layer.name,
            width=layer.y[0].numel(),
            inverse=inverses[i],
            influence=median(sample_norm(change.delta) / sample_norm(found.deltas[i])),
            angle_backprop=_angle(used[i], slopes[i]),
            angle_gauss_newton=_angle(used[i], newton[i]),
            angle_gradient=_angle(_flat(written[i]), _flat(gradients[i])),
        )
        for i, layer in enumerate(record.layers)
    ]
    return Inspection(len(x), float(change.loss), tuple(layers))


def _measure_inverses(
    engine: TargetPropagation, record: Record, targets: Targets, on_layer: Callable[[int, int], None] | None
) -> list[InverseQuality | None]:
    found: list[InverseQuality | None] = [None]
    for index in range(1, len(record.layers)):
        if on_layer is not None:
            on_layer(index + 1, len(record.layers))
        asked = asked_inverse(engine, record, targets.deltas, index)
        quality = measure_inverse(asked, engine.method.inversion, targets.deltas[index - 1])
        outcome = targets.outcomes.get(record.layers[index].layer.name, targets.outcomes.get("all"))
        fell = None if outcome is None else float((outcome.status == Status.FALLBACK).double().mean())
        found.append(replace(quality, fallback=fell))
    return found


def _angle(a: Tensor | None, b: Tensor | None) -> float | None:
    return None if a is None or b is None else median(angle(a[: len(b)], b))


def _flat(parts: list[Tensor]) -> Tensor | None:
    return torch.cat([part.flatten() for part in parts]).unsqueeze(0) if parts else None


@contextmanager
def _left_as_it_was(engine: TargetPropagation) -> Iterator[None]:
    """Put the modules into eval mode and take ``.grad`` away; bring back both and the random state."""
    gradients = [(p, p.grad) for module in engine.network.modules() for p in module.parameters(recurse=False)]
    try:
        with forked_random_states(), evaluating(engine.network.modules()):
            for parameter, _ in gradients:
                parameter.grad = None
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
