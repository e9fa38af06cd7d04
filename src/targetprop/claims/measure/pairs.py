r"""Pairs of a map and its approximate inverse that iterations are measured on, each with targets that can be reached.

The theorem should apply to `affine`, `random_pair` and `digits_layers`; not to `misplaced_kinks`, `shrinking` and
`noisy_inverse`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

import targetprop as tp
from targetprop.claims.altered import Alter
from targetprop.claims.networks import DTYPE, digits_network, load_digits, random_network, with_singular_values
from targetprop.decoders import Inverse
from targetprop.diagnostics import linear_inverse
from targetprop.inversion import Map
from targetprop.layers import LayerRecord


@dataclass(frozen=True, eq=False)
class Pair:
    """A map, its approximate inverse, and what is to be inverted."""

    name: str  # what the map is
    f: Map  # the map
    g: Inverse  # the approximate inverse
    x0: Tensor  # where the iteration starts, shape ``(n, d)``
    target: Tensor  # ``t = f(x*)``, shape ``(n, k)``
    solution: Tensor | None = None  # ``x*``, where it is the only one


def affine(width: int, samples: int, seed: int, alter: Alter) -> tuple[Pair, Tensor, Tensor]:
    """Draw ``f(x) = A x + a`` and ``g(y) = G y + b`` with ``G = A⁻¹ (I + E)``, ``‖E‖ = 0.6``."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.logspace(-0.5, 0.5, width, base=4.0, dtype=DTYPE)
    A = with_singular_values(values, width, width, generator)
    error = with_singular_values(0.6 * torch.rand(width, dtype=DTYPE, generator=generator), width, width, generator)
    G = torch.linalg.inv(A) @ (torch.eye(width, dtype=DTYPE) + error)
    a, b, x0, solution = (torch.randn(n, width, dtype=DTYPE, generator=generator) for n in (1, 1, samples, samples))
    f: Map = lambda x: x @ A.T + a  # noqa: E731
    g = alter(Inverse(lambda y: y @ G.T + b, lambda y, change: change @ G.T))
    return Pair("affine", f, g, x0, f(solution), solution), A, G


def random_pair(
    name: str, activation: Callable[[], nn.Module], width: int, samples: int, seed: int, alter: Alter
) -> Pair:
    """Draw an invertible network; its decoders are affine, fitted by ridge regression (`targetprop.Ridge`)."""
    network = random_network([width] * 5, activation, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    draw = lambda n: 0.25 * torch.randn(n, width, dtype=DTYPE, generator=generator)  # noqa: E731
    method = tp.Method(decoder=tp.Ridge(damping=1e-4, every=1))
    engine = tp.TargetPropagation(network, nn.MSELoss(), example_input=draw(2), method=method, seed=seed)
    fitted = draw(4 * width + 512)
    for _ in range(3):
        engine.train_decoders(fitted)
    with torch.no_grad():
        record = engine.record(draw(samples))
        x0 = record.layers[1].x
        f: Map = lambda x: reduce(lambda h, layer: layer.f(h), record.layers[1:], x)  # noqa: E731
        solution = x0 + 0.5 * draw(samples)
        return Pair(
            f"{name}, width {width}", f, alter(engine.bank.composite(record.layers[1:])), x0, f(solution), solution
        )


def digits_layers(name: str, widths: tuple[int, ...], epochs: int, samples: int, seed: int, alter: Alter) -> list[Pair]:
    """Train a network on digits by a method, and take its layers with the decoders that it learned, the top one first.

    The targets are those of training: a layer's is the one that the layer above sent down.
    """
    data, network = load_digits(), digits_network(widths, seed)
    method = tp.method(name)
    loss, x = nn.CrossEntropyLoss(), data.train_x[:2]
    engine = tp.TargetPropagation(network, loss, example_input=x, method=method, seed=seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(data.train_x), generator=order).split(64):
            optimizer.zero_grad()
            engine.backward(data.train_x[rows], data.train_y[rows])
            optimizer.step()
    network.double()
    engine.bank.double()
    x, y = data.test_x[:samples].double(), data.test_y[:samples]
    with torch.no_grad():
        record = engine.record(x)
        change, pairs = method.output_target(record.output, y, loss).delta, []
        for layer in reversed(record.inverted):
            g = engine.bank.inverse(layer)
            # As a matrix it can be looked at many points at once.
            known = linear_inverse(decoder_matrix(layer, g), layer.x, layer.h)
            shape = f"{layer.x.shape[1]} → {layer.h.shape[1]}"
            pairs.append(Pair(f"digits, {name}, {shape}", layer.f, alter(known), layer.x, layer.h + change))
            change = g.difference(layer.h, change)
    return pairs


def misplaced_kinks(slope: float, shift: float, samples: int, seed: int, width: int = 16) -> Pair:
    """Invert a leaky ReLU layer exactly, but for its kinks, which the inverse has in another place.

    With ``z = W x + b``: ``f = W' L(z)``, ``g(y) = W⁻¹ (L⁻¹(W'⁻¹ y + shift) − b)``. Between the two kinks ``J_g J_f``
    has the eigenvalue ``1 / slope`` or ``slope``, everywhere else it is the identity.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.logspace(-0.25, 0.25, width, base=2.0, dtype=DTYPE)
    inner, outer = (with_singular_values(values, width, width, generator) for _ in range(2))
    bias, x0, change = (torch.randn(n, width, dtype=DTYPE, generator=generator) for n in (1, samples, samples))
    back_inner, back_outer = torch.linalg.inv(inner), torch.linalg.inv(outer)
    f: Map = lambda x: nn.functional.leaky_relu(x @ inner.T + bias, slope) @ outer.T  # noqa: E731

    def g(y: Tensor) -> Tensor:
        h = y @ back_outer.T + shift
        return (torch.where(h > 0, h, h / slope) - bias) @ back_inner.T

    # Its error at y₀ is no part of the iteration: x₀ is where g puts y₀.
    x0 = g(f(x0))
    solution = x0 + 0.3 * change
    return Pair(f"kinks, slope {slope:g}", f, plain_inverse(g), x0, f(solution), solution)


def shrinking(inputs: int, outputs: int, samples: int, seed: int) -> Pair:
    """Draw a tanh layer with a null space; the inverse is the pseudo-inverse of its weights."""
    generator = torch.Generator().manual_seed(seed)
    W = with_singular_values(torch.linspace(0.7, 1.3, outputs, dtype=DTYPE), outputs, inputs, generator)
    x0, solution = (0.4 * torch.randn(samples, inputs, dtype=DTYPE, generator=generator) for _ in range(2))
    back = torch.linalg.pinv(W)
    f: Map = lambda x: torch.tanh(x @ W.T)  # noqa: E731
    g = Inverse(lambda y: y @ back.T, lambda y, change: change @ back.T)
    return Pair(f"tanh, {inputs} → {outputs}", f, g, x0, f(solution), solution)


def noisy_inverse(damping: float, draws: int, samples: int, seed: int, width: int = 16) -> Pair:
    """Damp the inverse of a tanh layer whose smallest singular values are lost in the noise of what was learned.

    ``g`` is linear, ``Vᵀ (V Vᵀ + λI)⁻¹`` with ``V = W + E``: ``W`` has singular values from 1 down to 0.03, ``E`` is
    white with ``‖E‖ ≈ 0.2``.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.logspace(0, -1.5, width, dtype=DTYPE)
    W = torch.stack([with_singular_values(values, width, width, generator) for _ in range(draws)])
    V = W + 0.2 / (2 * width**0.5) * torch.randn(W.shape, dtype=DTYPE, generator=generator)
    back = V.mT @ torch.linalg.inv(V @ V.mT + damping * torch.eye(width, dtype=DTYPE))
    x0, change = (torch.randn(draws * samples, width, dtype=DTYPE, generator=generator) for _ in range(2))

    def apply(matrices: Tensor, x: Tensor) -> Tensor:
        return (x.view(draws, -1, width) @ matrices.mT).view_as(x)

    f: Map = lambda x: torch.tanh(apply(W, x))  # noqa: E731
    g = Inverse(lambda y: apply(back, y), lambda y, change: apply(back, change))
    solution = x0 + 0.3 * change
    return Pair(f"damping {damping:g}", f, g, x0, f(solution), solution)


def plain_inverse(g: Map) -> Inverse:
    """Give a callable its differences."""
    return Inverse(g, lambda y, change: g(y + change) - g(y))


def decoder_matrix(layer: LayerRecord, g: Inverse) -> Tensor:
    """Go along every axis of the output of a decoder that is affine at each sample.

    Args:
        layer: the layer, whose outputs are vectors.
        g: its decoder.

    Returns:
        ``J_g``, shape ``(n, d_{l-1}, d_l)``.
    """
    axes = torch.eye(layer.h.shape[1], dtype=layer.h.dtype)
    return torch.stack([g.difference(layer.h, axis.expand_as(layer.h).contiguous()) for axis in axes], dim=2)
