r"""Iterating an approximate inverse converges exponentially where ``ρ = Lip(g∘f − id) < 1`` (arXiv:2007.15139).

    ``‖x_k − x*‖ ≤ ρᵏ ‖x_0 − x*‖``   and   ``‖x_k − x*‖ ≤ ρ/(1−ρ) ‖x_k − x_{k−1}‖``

Both iterations are compared with the closed form of affine maps, and with the Lipschitz constant of the ball that they
visit on random invertible networks and in every layer of two networks trained on digits, one by `learned-inverse` and
one by `iterated`; then what smaller steps and Anderson mixing rescue where the
premise fails: kinks of ``f`` and ``g`` in different places, layers that shrink, damping that goes to zero.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

import targetprop as tp
from targetprop.claims.altered import Alter, unaltered
from targetprop.claims.claim import Claim, Number, Table
from targetprop.claims.measure.decay import Decay, measure_decay
from targetprop.claims.measure.pairs import (
    Pair,
    affine,
    digits_layers,
    misplaced_kinks,
    noisy_inverse,
    random_pair,
    shrinking,
)  # fmt: skip
from targetprop.diagnostics import affine_error, spectral_norm, visited
from targetprop.inversion import sample_norm

_SPACES = ("input-space", "output-space")
_ACTIVATIONS = {"leaky ReLU": lambda: nn.LeakyReLU(0.7), "tanh": nn.Tanh, "ELU": nn.ELU}
_ROUNDING = 1 + 1e-6
_STEPS = 200
_REACHED = 1e-3  # of the change asked for
_RESCUES = {
    "plain": tp.InputSpace(steps=_STEPS, tolerance=1e-9),
    "half steps": tp.InputSpace(steps=_STEPS, tolerance=1e-9, alpha=0.5),
    "Anderson": tp.InputSpace(steps=_STEPS, tolerance=1e-9, anderson=5),
}
_LEARNED, _BY_CONSTRUCTION = "learned-inverse", "iterated"
_WIDTHS = (48, 24)
_MOST = 0.95  # of the samples
_SLOPES = (0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
_DAMPINGS = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 0.0)


def convergence(
    seed: int = 0,
    *,
    widths: Sequence[int] = (8, 64, 256),
    samples: int = 24,
    steps: int = 40,
    epochs: int = 15,
    alter: Alter = unaltered,
) -> Claim:
    """Measure the decay of both iterations against what the Lipschitz constant predicts."""
    closed = max(_closed_form_error(space, alpha, seed, alter) for space in _SPACES for alpha in (1.0, 0.5))
    random = [
        (pair, space, measure_decay(pair, space, steps))
        for width in widths
        for name, make in _ACTIVATIONS.items()
        for pair in [random_pair(name, make, width, samples, seed, alter)]
        for space in _SPACES
    ]
    trained = [
        (pair, "output-space", measure_decay(pair, "output-space", steps))
        for method in (_LEARNED, _BY_CONSTRUCTION)
        for pair in digits_layers(method, _WIDTHS, epochs, samples, seed, alter)
    ]
    kinks = _sweep("slope", _SLOPES, [misplaced_kinks(slope, -0.1, 8 * samples, seed) for slope in _SLOPES])
    damping = _sweep("damping", _DAMPINGS, [noisy_inverse(damping, 8, samples, seed) for damping in _DAMPINGS])
    null = _null_space(samples, steps, seed)
    decays = [decay for *_, decay in (*random, *trained)]
    posteriori = _largest([d.against_a_posteriori for d in decays])
    return Claim(
        name="convergence",
        statement="Iterating approximate inverses converges exponentially when Lip(g∘f − id) < 1",
        prediction="‖x_k − x*‖ ≤ ρᵏ ‖x_0 − x*‖; affine maps: the error is (I − αGA)ᵏ e_0",
        measured=(
            Number("affine maps, relative distance from the closed form", (closed,), at_most=1e-10),
            Number("random networks, largest ρ", (max(d.rho for *_, d in random),), at_most=0.9999),
            *(number for pair, _, decay in trained for number in _premise(pair.name, decay)),
            Number("largest error / ρᵏ e_0", (_largest([d.against_bound for d in decays]),), at_most=_ROUNDING),
            Number("largest error / a-posteriori bound", (posteriori,), at_most=_ROUNDING),
            Number("largest decay per step / ρ", (max(float(d.rates.max()) / d.rho for d in decays),)),
        ),
        stops=_stops(kinks, damping, null),
        limits=_limits(kinks, damping, null),
        tables=(_pair_table([*random, *trained]), _rescue_table(kinks, damping)),
        data={
            "decays": [_series(pair, space, decay) for pair, space, decay in (*random, *trained)],
            "kinks": kinks,
            "damping": damping,
        },
        seeds=(seed,),
    )


def _premise(name: str, decay: Decay) -> tuple[Number, Number]:
    """How large ``ρ`` is in a trained layer, and at how many samples it is below 1."""
    share = float((decay.norms < 1).double().mean())
    largest = Number(f"{name}: largest ρ", (decay.rho,), at_most=0.99999)
    return largest, Number(f"{name}: share with ρ < 1", (share,), at_least=_MOST)


def _closed_form_error(space: str, alpha: float, seed: int, alter: Alter) -> float:
    """Largest ``‖e_k − (I − αGA)ᵏ e_0‖ / ‖e_0‖`` over twenty steps."""
    pair, A, G = affine(6, 8, seed, alter)
    rule = (tp.InputSpace if space == "input-space" else tp.OutputSpace)(steps=20, alpha=alpha, tolerance=0.0)
    points = visited(pair.f, pair.g, pair.target, pair.x0, rule)
    assert pair.solution is not None
    first, worst = points[0] - pair.solution, 0.0
    # Output space errs by (I − αAG)ᵏ in u, and x = G u + constant: G (I − αAG)ᵏ = (I − αGA)ᵏ G.
    for k, x in enumerate(points):
        distance = sample_norm(x - pair.solution - affine_error(A, G, alpha, k, first)) / sample_norm(first)
        worst = max(worst, float(distance.max()))
    return worst


def _largest(values: list[float]) -> float:
    found = [value for value in values if value == value]
    return max(found) if found else float("nan")


def _shares(pair: Pair) -> dict[str, float]:
    """Share of samples that ``ρ`` at the solution guarantees to reach the target, and of those that do, by rule."""
    assert pair.solution is not None
    asked = sample_norm(pair.target - pair.f(pair.x0))
    norms = spectral_norm(lambda x: pair.g(pair.f(x)) - x, pair.solution, steps=100)
    found = {"guaranteed": _share(norms**_STEPS < _REACHED)}
    for name, rule in _RESCUES.items():
        solution = tp.invert(pair.f, pair.g, pair.target, pair.x0, method=rule)
        assert solution.forward_residual is not None
        found[name] = _share(solution.forward_residual <= _REACHED * asked)
    return found


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())


def _sweep(name: str, settings: Sequence[float], pairs: list[Pair]) -> dict[str, Any]:
    shares = [_shares(pair) for pair in pairs]
    return {name: list(settings)} | {key: [row[key] for row in shares] for key in shares[0]}


def _null_space(samples: int, steps: int, seed: int) -> dict[str, float]:
    pair = shrinking(16, 8, 8 * samples, seed)
    rho = {space: measure_decay(pair, space, steps).rho for space in _SPACES}
    return rho | {"reached": _shares(pair)["plain"]}


def _stops(kinks: dict[str, Any], damping: dict[str, Any], null: dict[str, float]) -> str:
    at = _SLOPES.index(0.3)
    return (
        f"Where kinks of f and g do not coincide (leaky ReLU, slope 0.3) {kinks['plain'][at]:.0%} of samples converge;"
        f" steps of α = 0.5 make it {kinks['half steps'][at]:.0%}. An undamped inverse of a noisy layer:"
        f" {damping['plain'][-1]:.0%}, damped {max(damping['plain']):.0%}, and with Anderson mixing"
        f" {max(damping['Anderson']):.0%}. In a null space ρ is 1 or more ({null['input-space']:.2f} here) and x"
        " stays where it was, yet the target is reached: measure ρ on the smaller side."
    )


def _limits(kinks: dict[str, Any], damping: dict[str, Any], null: dict[str, float]) -> tuple[Number, ...]:
    found: list[Number] = []
    for key in ("guaranteed", *_RESCUES):
        what = "guaranteed to converge" if key == "guaranteed" else f"that converge, {key}"
        found.append(Number(f"kinks at slope 0.3, share of samples {what}", (kinks[key][_SLOPES.index(0.3)],)))
        found.append(Number(f"undamped noisy inverse, share of samples {what}", (damping[key][-1],)))
    return (
        *found,
        Number("shrinking layer, ρ on the larger side", (null["input-space"],)),
        Number("shrinking layer, ρ on the smaller side", (null["output-space"],)),
        Number("shrinking layer, share of samples that reach the target", (null["reached"],)),
    )


def _series(pair: Pair, space: str, decay: Decay) -> dict[str, Any]:
    relative = decay.errors / decay.errors[0]
    return {
        "name": pair.name, "space": space, "rho": decay.rho, "median": relative.median(1).values.tolist(),
        "worst": relative.amax(1).tolist(), "rates": decay.rates.tolist(),
    }  # fmt: skip


def _pair_table(rows: list[tuple[Pair, str, Decay]]) -> Table:
    columns = ("map", "iteration", "ρ on the ball", "decay per step, median", "slowest", "error / ρᵏe₀, largest")
    cells = [
        (pair.name, space, d.rho, float(d.rates.median()), float(d.rates.max()), d.against_bound)
        for pair, space, d in rows
    ]
    return Table("Predicted and measured decay", columns, tuple(cells))


def _rescue_table(kinks: dict[str, Any], damping: dict[str, Any]) -> Table:
    names = ("guaranteed", *_RESCUES)
    rows = [(f"kinks, slope {slope:g}", *(kinks[name][i] for name in names)) for i, slope in enumerate(kinks["slope"])]
    rows += [(f"noisy, λ = {lam:g}", *(damping[name][i] for name in names)) for i, lam in enumerate(damping["damping"])]
    columns = ("where the premise fails", "guaranteed by ρ at x*", "converge", "with α = 0.5", "with Anderson (5)")
    return Table("Share of samples whose target is reached within 200 steps", columns, tuple(rows))
