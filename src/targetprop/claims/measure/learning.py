"""Decoders that learn from digits, alone and with the network, and what their inverses are worth at checkpoints."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import targetprop as tp
from targetprop.claims.networks import digits_network, load_digits
from targetprop.decoders import Inverse, Objective
from targetprop.layers import LayerRecord

SAMPLES, BATCH, ITERATIONS = 64, 128, 10
RATE = 1e-3  # of the network's Adam
TARGET = 0.01  # ‖t − y₀‖ / ‖y₀‖: small, so that residuals tell of the inverse and not of curvature
Series = dict[str, list[list[float]]]


def learn(
    objective: Objective, widths: Sequence[int], marks: Sequence[int], seed: int, rest: int | None = None
) -> Series:
    """Train decoders with the network at its random start; given ``rest``, with it, then so many steps alone."""
    engine, generator, looks = _engine(objective, widths, seed), torch.Generator().manual_seed(seed), []
    assert isinstance(engine.model, nn.Module)
    optimizer = torch.optim.Adam(engine.model.parameters(), lr=RATE)
    for step in range(marks[-1] + 1):
        looks += [_look(engine, seed) for mark in marks if mark == step]
        if step == marks[-1]:
            break
        x, y = _batch(generator)
        if rest is None:
            engine.train_decoders(x)
        else:
            optimizer.zero_grad()
            engine.backward(x, y)
            optimizer.step()
    if rest is None:
        return _series(looks)
    for _ in range(rest):
        engine.train_decoders(_batch(generator)[0])
    return _series([*looks, _look(engine, seed)])


def _engine(objective: Objective, widths: Sequence[int], seed: int) -> tp.TargetPropagation:
    network, x = digits_network(widths, seed), load_digits().train_x[:2]
    method = tp.Method(decoder=objective)
    return tp.TargetPropagation(network, nn.CrossEntropyLoss(), example_input=x, method=method, seed=seed)


def _batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    data = load_digits()
    chosen = torch.randint(len(data.train_x), (BATCH,), generator=generator)
    return data.train_x[chosen], data.train_y[chosen]


@torch.no_grad()
def _look(engine: tp.TargetPropagation, seed: int) -> list[dict[str, float]]:
    """Measure every inverted layer on held-out samples."""
    record = engine.record(load_digits().test_x[:SAMPLES])
    generator, found = torch.Generator().manual_seed(seed), []
    for index, layer in enumerate(record.layers[1:], start=1):
        g = engine.bank.inverse(record.layers[index])
        factor = _factor(layer, g)
        change = torch.randn(layer.h.shape, generator=generator)
        change *= TARGET * layer.h.norm(dim=1, keepdim=True) / change.norm(dim=1, keepdim=True)
        first, last = (
            _residual(layer, g, change, rule) for rule in (tp.Difference(), tp.OutputSpace(ITERATIONS, tolerance=0.0))
        )
        share = float((factor < 1).double().mean())
        found.append({"factor": float(factor.median()), "share": share, "first": first, "last": last})
    return found


def _factor(layer: LayerRecord, g: Inverse) -> Tensor:
    """Measure the contraction factor of every sample, on the smaller side of the layer."""
    x0, y0 = layer.x, layer.h
    wide = x0.shape[1] < y0.shape[1]
    at = (x0 if wide else y0).clone().requires_grad_()
    with torch.enable_grad():
        moved = (g(layer.f(at)) if wide else layer.f(x0 + g(at) - g(y0))) - at
        # Inverses of some decoders are backward passes, which can be differentiated but not batched.
        columns = moved.unbind(1)
        rows = [torch.autograd.grad(column.sum(), at, retain_graph=True)[0] for column in columns]
    return torch.linalg.matrix_norm(torch.stack(rows, dim=1), ord=2)


def _residual(layer: LayerRecord, g: Inverse, change: Tensor, rule: tp.Difference | tp.OutputSpace) -> float:
    solution = tp.invert(layer.f, g, layer.h + change, layer.x, layer.h, rule)
    assert solution.forward_residual is not None
    return float((solution.forward_residual / change.norm(dim=1)).median())


def _series(looks: list[list[dict[str, float]]]) -> Series:
    return {key: [[layer[key] for layer in look] for look in looks] for key in looks[0][0]}
