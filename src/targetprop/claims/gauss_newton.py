r"""Small targets by exact inverses give Gauss-Newton updates (Bengio 2020, arXiv:2007.15139).

Where layers are invertible, a small ``Δ_L = −β ∂C/∂h_L`` becomes ``Δ_l = J_{l→L}⁻¹ Δ_L + O(β²)``, Gauss-Newton's change
of the activations, and the delta rule turns that into ``J_θ⁺ Δ_L``, the block-diagonal Gauss-Newton step of one sample.
Damped inverses, which only iteration makes exact, are compared with both, by dense solves and by curvlinops; least
squares with the step of a whole batch; then layers that shrink (see `shrinking`).
"""

import torch
from torch import nn

from targetprop.claims.altered import Alter, unaltered
from targetprop.claims.claim import Claim, Number, Table, format_number
from targetprop.claims.measure.iterated_newton import Convergence, Errors, converge
from targetprop.claims.measure.shrinking import Shrinking, shrinking_layers
from targetprop.claims.measure.trial import Trial
from targetprop.claims.networks import DTYPE, random_network

_BETA = 1e-7  # about √eps: below it rounding is larger, above it curvature
_ACTIVATIONS = {"tanh": nn.Tanh, "leaky ReLU": lambda: nn.LeakyReLU(0.5)}


def gauss_newton(
    seed: int = 0,
    *,
    width: int = 12,
    depth: int = 4,
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64),
    batch: int = 8,
    shrinking: tuple[int, ...] = (48, 40, 32, 24, 16, 8),
    alter: Alter = unaltered,
) -> Claim:
    """Measure how close targets and weight changes come to Gauss-Newton's."""
    found = {}
    for name, activation in _ACTIVATIONS.items():
        generator = torch.Generator().manual_seed(seed + 1)  # weights are drawn from the seed itself
        x, y = (torch.randn(batch, width, dtype=DTYPE, generator=generator) for _ in range(2))
        network, loss = random_network([width] * (depth + 1), activation, seed), nn.MSELoss(reduction="sum")
        trial = Trial(network, x, y, loss, alter=alter)
        found[name] = converge(trial, steps, _BETA)
    shrunk = shrinking_layers(seed, shrinking, batch, _BETA, alter)
    return Claim(
        name="gauss-newton",
        statement="Small targets by exact inverses give Gauss-Newton updates",
        prediction="Δ_l → J_{l→L}⁺ Δ_L and Δθ_l → J_θ⁺ Δ_L: cosine 1 as the inversion's steps grow",
        measured=_numbers(list(found.values()), shrunk, steps),
        stops=_stops(shrunk),
        limits=_limits(shrunk),
        tables=(*_invertible_tables(found, steps), _shrinking_table(shrunk)),
        data=_data(found["tanh"], shrunk, steps),
        seeds=(seed,),
    )


def _cosine(errors: list[Errors]) -> float:
    return 1 - max(max(e.direction[-1]) for e in errors)


def _size(errors: list[Errors], row: int = -1) -> float:
    return max(max(e.size[row]) for e in errors)


def _numbers(found: list[Convergence], shrunk: Shrinking, steps: tuple[int, ...]) -> tuple[Number, ...]:
    activations, weights = [c.activations for c in found], [c.weights for c in found]
    tikhonov = max(size for c in found for row in c.against_prediction.size for size in row)
    after = f"after {steps[-1]} steps"
    cosines = {
        f"smallest cosine of activation changes {after}": activations,
        f"smallest cosine of weight changes {after}": weights,
        f"the same against curvlinops {after}": [c.weights_curvlinops for c in found],
        f"smallest cosine of a batch's weight changes {after}": [c.batch for c in found],
    }
    return (
        Number("largest relative error of activation changes with the fewest steps", (_size(activations, 0),)),
        *(Number(what, (_cosine(e),), at_least=0.999) for what, e in cosines.items() if e[0].direction),
        Number(f"largest relative error of activation changes {after}", (_size(activations),), at_most=0.01),
        Number(f"largest relative error of weight changes {after}", (_size(weights),), at_most=0.01),
        Number("largest deviation from iterated Tikhonov, any number of steps", (tikhonov,), at_most=1e-3),
        Number("shrinking: deviation from the product of pseudo-inverses", (shrunk.product_error,), at_most=1e-3),
    )


def _limits(shrunk: Shrinking) -> tuple[Number, ...]:
    return (
        Number("shrinking: mean cosine of activation changes, lowest layer", (shrunk.measured[0],)),
        Number("shrinking: error of the output's change that the targets make", (shrunk.reach_error,)),
        Number("shrinking, composite transposes: smallest cosine of activation changes", (min(shrunk.composite),)),
        *(
            Number(f"shrinking, composite transposes, {cut}: smallest cosine of weight changes", (cosine,))
            for cut, cosine in shrunk.weights.items()
        ),
    )


def _stops(shrunk: Shrinking) -> str:
    numbers = (shrunk.measured[0], min(shrunk.composite), shrunk.reach_error)
    lowest, composite, reach = map(format_number, numbers)
    pre, post = (format_number(shrunk.weights[cut]) for cut in ("pre-activation", "post-activation"))
    return (
        f"Where layers shrink, the product of pseudo-inverses is not the pseudo-inverse of the product: the mean cosine"
        f" falls to {lowest} in the lowest layer, though the changes still move the output as asked (error {reach})."
        f" Iterating on the composite map with transposes instead gives {composite} for activations, and for weights"
        f" {pre} if layers end before the activation, {post} if after it: there the shortest change of the weights does"
        " not go with the shortest change of the layer's output."
    )


def _invertible_tables(found: dict[str, Convergence], steps: tuple[int, ...]) -> tuple[Table, ...]:
    tanh = found["tanh"]
    layers = range(1, len(tanh.weights.size[0]))
    sizes = zip(steps, tanh.activations.size, tanh.activations_predicted.size, strict=True)
    by_steps = Table(
        "tanh: relative error of activation changes, measured and by iterated Tikhonov",
        ("steps", *(f"layer {i}{kind}" for i in layers for kind in ("", ", predicted"))),
        tuple((k, *(value for pair in zip(a, b, strict=True) for value in pair)) for k, a, b in sizes),
    )
    rows = [
        (name, layer + 1, *(_last(e, layer) for e in (c.activations, c.weights, c.weights_curvlinops, c.batch)))
        for name, c in found.items()
        for layer in range(len(c.weights.size[0]))
    ]
    columns = ("network", "layer", "activation changes", "weight changes", "against curvlinops", "of a batch")
    return by_steps, Table(f"Relative error to Gauss-Newton after {steps[-1]} steps", columns, tuple(rows))


def _last(errors: Errors, layer: int) -> str | float:
    if not errors.size:
        return "not installed"
    return errors.size[-1][layer] if layer < len(errors.size[-1]) else "given"


def _shrinking_table(shrunk: Shrinking) -> Table:
    rows = zip(shrunk.measured, shrunk.predicted, shrunk.composite, strict=True)
    return Table(
        "Shrinking layers: cosine to Gauss-Newton's activation changes",
        ("layer", "layer by layer (mean)", "product of pseudo-inverses (mean)", "composite transposes (smallest)"),
        tuple((layer, *row) for layer, row in enumerate(rows, start=1)),
    )


def _data(tanh: Convergence, shrunk: Shrinking, steps: tuple[int, ...]) -> dict[str, object]:
    return {
        "steps": list(steps),
        "activations": tanh.activations.direction,
        "activations predicted": tanh.activations_predicted.direction,
        "weights": tanh.weights.direction,
        "weights predicted": tanh.weights_predicted.direction,
        "weights curvlinops": tanh.weights_curvlinops.direction,
        "shrinking": {key: getattr(shrunk, key) for key in ("measured", "predicted", "composite")},
    }
