r"""What targets of a small output change ``βv`` should be, and by how much they should miss it, by dense algebra.

With ``F`` the layers above ``h_l`` and ``J`` its Jacobian, ``F(h_l + Δ) = h_L + βv`` has the solution

    ``Δ_l = β u − ½ β² J⁻¹ D²F[u, u] + O(β³)``,   ``u = J⁻¹ v``:

linear in ``β`` up to the curvature. What arithmetic adds is of the size of the rounding of every activation on the way,
carried down by the inverses: ``eps Σ_{j ≥ l} ‖J_{l→j}⁻¹‖ ‖h_j‖``, with the norm of a random vector's image.
"""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.func import jvp

from targetprop.diagnostics import layer_jacobian, output_jacobians
from targetprop.forward import LayerRecord, Record
from targetprop.inversion import sample_norm


@dataclass(frozen=True, eq=False)
class Linear:
    """The prediction of one layer."""

    change: Tensor  # ``J_{l→L}⁻¹ v``, shape of ``h_l``
    size: float  # its norm, root mean square over samples
    curvature: float  # ``½ ‖J⁻¹ D²F[u, u]‖``, root mean square over samples: the error is ``curvature · β²``
    rounding: float  # ``Σ_j ‖J_{l→j}⁻¹‖ ‖h_j‖``, root mean square over samples: the error's floor is ``rounding · eps``


def predict(record: Record, v: Tensor) -> list[Linear]:
    """Predict the targets of all hidden layers of an invertible network."""
    found = []
    for index, jacobian in enumerate(output_jacobians(record)[:-1]):
        layer, above = record.layers[index], record.layers[index + 1 :]
        change = torch.linalg.solve(jacobian, v)
        bend = torch.linalg.solve(jacobian, _second_derivative(above, layer.h, change))
        found.append(Linear(change, rms(change), 0.5 * rms(bend), _rounding(layer.h, above)))
    return found


def without_iteration(record: Record, change: Tensor, error: Tensor, *, direct: bool) -> list[Tensor]:
    """Carry a change down by one call each of decoders ``(I + E) ∘ g_l``, ``g_l`` the inverse linearised at ``h_l``."""
    found = [change]
    for layer in reversed(record.layers[1:]):
        inverted = torch.linalg.solve(layer_jacobian(layer), found[-1])
        found.append(inverted + (inverted + layer.x if direct else inverted) @ error.T)
    return found[:0:-1]


def rms(vectors: Tensor) -> float:
    """Root mean square over samples of their norms."""
    return float(sample_norm(vectors.double()).square().mean().sqrt())


def _second_derivative(above: tuple[LayerRecord, ...], h: Tensor, u: Tensor) -> Tensor:
    """``D²F(h)[u, u]``."""

    def forward(x: Tensor) -> Tensor:
        return reduce(lambda value, layer: layer.f(value), above, x)

    def slope(x: Tensor) -> Tensor:
        return jvp(forward, (x,), (u,))[1]

    return jvp(slope, (h,), (u,))[1].detach()


def _rounding(h: Tensor, above: tuple[LayerRecord, ...]) -> float:
    inverse = torch.eye(h.shape[1], dtype=h.dtype).expand(len(h), -1, -1)
    total = sample_norm(h)
    for layer in above:
        inverse = inverse @ torch.linalg.inv(layer_jacobian(layer))
        # Frobenius over √d: how much longer a random vector becomes.
        total = total + sample_norm(inverse) / h.shape[1] ** 0.5 * sample_norm(layer.h)
    return float(total.square().mean().sqrt())
