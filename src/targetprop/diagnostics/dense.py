r"""What target propagation approximates, by dense algebra: back-propagation, Gauss-Newton, and damped inverses.

>>> import torch
>>> J = torch.tensor([[2.0, 0.0]])
>>> damped_inverse(J, w=1.0, damping=0.0)          # the pseudo-inverse
tensor([[0.5000],
        [0.0000]])
>>> damped_inverse(J, w=0.0, damping=1.0)          # the transpose
tensor([[2.],
        [0.]])
"""

import torch
from torch import Tensor

from targetprop.diagnostics.jacobians import parameter_jacobians
from targetprop.layers import Record


def damped_inverse(jacobian: Tensor, w: float, damping: float) -> Tensor:
    """Compute ``Jᵀ (w J Jᵀ + λ I)⁻¹``; its limit ``J⁺ / w`` for ``λ = 0``.

    Args:
        jacobian: ``J``, shape ``(…, d_out, d_in)``.
        w: weight of the inverse, ≥ 0.
        damping: ``λ ≥ 0``, not 0 together with ``w``.

    Returns:
        Shape ``(…, d_in, d_out)``.
    """
    if damping == 0:
        return torch.linalg.pinv(jacobian) / w
    eye = torch.eye(jacobian.shape[-2], dtype=jacobian.dtype, device=jacobian.device)
    return jacobian.mT @ torch.linalg.inv(w * jacobian @ jacobian.mT + damping * eye)


def backprop_gradients(record: Record, output_gradient: Tensor) -> list[Tensor]:
    """Sum ``(∂h_L/∂θ_l)ᵀ ∂C/∂h_L`` over samples, with dense Jacobians.

    Args:
        record: the forward pass.
        output_gradient: ``∂C/∂h_L`` of the batch's loss (a mean has its 1/n in it), shape of the output.

    Returns:
        One flat gradient per layer, in the order of ``layer.parameters()``.
    """
    total: list[Tensor] | None = None
    for sample in range(len(record.output)):
        v = output_gradient[sample].flatten()
        found = [jacobian.T @ v for jacobian in parameter_jacobians(record, sample)]
        total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
    return total or []


def gauss_newton_steps(record: Record, delta: Tensor, sample: int) -> list[Tensor]:
    """Solve the block-diagonal Gauss-Newton step of one sample, ``J_θ⁺ Δ_L`` for each layer by itself.

    Args:
        record: the forward pass.
        delta: ``Δ_L`` of the batch, shape of the output.
        sample: which sample.

    Returns:
        One flat change per layer, in the order of ``layer.parameters()``.
    """
    v = delta[sample].flatten()
    return [torch.linalg.pinv(jacobian) @ v for jacobian in parameter_jacobians(record, sample)]
