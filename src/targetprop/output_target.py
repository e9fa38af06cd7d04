r"""The output's target ``ĥ_L = h_L + Δ_L``, from the loss alone.

Losses are called as the user would call them, ``loss(output, y)``, and differentiated by autograd. Per-sample
gradients carry no 1/n: with a mean over the batch they are ``n ∂C/∂h_L``, with ``reduction="sum"`` ``∂C/∂h_L``.

>>> import torch
>>> from torch import nn
>>> h, y = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)
>>> GradientStep(beta=0.1)(h, y, nn.MSELoss()).delta          # −β ∂C/∂h
tensor([[-0.1000, -0.2000]])
>>> GaussNewtonStep(beta=0.5, damping=0.0)(h, y, nn.MSELoss()).delta     # −β H⁻¹ ∂C/∂h: halfway to the minimum
tensor([[-0.5000, -1.0000]])
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from targetprop.batch import Batch
from targetprop.finite import BAD_LOSS, Look
from targetprop.layers import LossGradient, Reduction, evaluate_loss, explain_loss
from targetprop.layers.graph import leaves_of
from targetprop.settings import check_ranges, check_types

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class OutputChange:
    """The loss and what it asks of the output.

    Attributes:
        loss: the loss as the user defined it, a scalar without graph.
        delta: ``Δ_L``, shape of the output.
        scale: what the update divides by, so that the output layer's gradient is back-propagation's: ``β n``, or ``β``
            with ``reduction="sum"``.
        gradient: of each sample's loss in the output, shape of that.
        samples: what a mean over the batch divides by: ``n``, or 1 of a sum.
        beside: gradients of parameters that the loss reaches by another way than the layers.
    """

    loss: Tensor
    delta: Tensor
    scale: float
    gradient: Tensor
    samples: float
    beside: Mapping[Tensor, Tensor] = field(default_factory=dict)

    def looks(self) -> tuple[Look, ...]:
        """Say what of it must be finite."""
        return (Look(BAD_LOSS, (self.loss, self.delta, *self.beside.values())),)


@dataclass(frozen=True)
class OutputTarget(ABC):
    """Settings of an output target.

    Attributes:
        beta: ``β > 0``, the size of the perturbation.
    """

    beta: float = 0.1
    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: a setting is out of its range.
        """
        check_types(self)
        if not self.beta > 0:
            raise ValueError(f"beta must be > 0; got {self.beta}")

    needs_output: ClassVar[bool] = False  # whether it has to know how the loss depends on the output

    def __call__(
        self,
        output: Tensor,
        y: Any,
        loss: Loss,
        batch: Batch | None = None,
        found: LossGradient | None = None,
        reduction: Reduction | None = None,
    ) -> OutputChange:
        """Evaluate the loss and the change of the output.

        Args:
            output: ``h_L``, shape ``(n, …)``.
            y: whatever the loss compares it with.
            loss: the user's loss.
            batch: which samples of the step these are; all of them if None.
            found: the loss and its gradients, where it is more than a function of ``output``.
            reduction: whether the loss is a sum or a mean; as it says or behaves if None.

        Returns:
            Loss and ``Δ_L``.

        Raises:
            ValueError: the target needs a loss that is a function of the output alone.
        """
        batch = Batch(len(output)) if batch is None else batch
        if found is not None and self.needs_output:
            raise ValueError(
                f"output target {self.name!r} needs a model that returns one tensor and a loss of that tensor alone;"
                " choose the output target 'gradient'"
            )
        reduction = Reduction(loss) if reduction is None else reduction
        summed = reduction.summed(output, y if found is None else None)
        found = loss_gradient(output, y, loss) if found is None else found
        value, gradient = batch.loss(found.value, found.output, output, y, loss, summed=summed)
        n = 1 if summed else batch.total
        own = n * gradient
        delta = self.beta * self.direction(output, y, loss, own)
        part = batch.rows / batch.total if batch.processes > 1 and n > 1 else 1.0
        return OutputChange(value, delta, self.beta * n, own, n, {p: g * part for p, g in found.beside.items()})

    @abstractmethod
    def direction(self, output: Tensor, y: Tensor, loss: Loss, gradient: Tensor) -> Tensor:
        """Compute ``Δ_L / β``.

        Args:
            output: ``h_L``, shape ``(n, …)``.
            y: labels or values.
            loss: the user's loss.
            gradient: per-sample gradient, shape of the output.

        Returns:
            Shape of the output.
        """


def loss_gradient(output: Tensor, y: Tensor, loss: Loss) -> LossGradient:
    """Evaluate a loss and its gradient in the output, and in parameters of its own."""
    h = output.detach().requires_grad_()
    with torch.enable_grad():
        value = evaluate_loss(loss, h, y)
        if value.device != h.device:
            raise ValueError(f"the loss is on {value.device} and the output on {h.device}; move the labels there")
        own = [leaf for leaf in leaves_of([value]) if leaf is not h]
        try:
            found = torch.autograd.grad(value, [h, *own], allow_unused=True) if value.requires_grad else [None]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(explain_loss(h, y, error)) from error
    if found[0] is None:
        raise ValueError("the loss does not depend on the output; compute it from that, without detach or item")
    beside = {p: g for p, g in zip(own, found[1:], strict=False) if g is not None}
    return LossGradient(value.detach(), found[0], beside)


@dataclass(frozen=True)
class GradientStep(OutputTarget):
    """``ĥ_L = h_L − β ∂C/∂h_L``.

    Attributes:
        beta: ``β > 0``; "differential" target propagation takes it small.
    """

    name: ClassVar[str] = "gradient"

    def direction(self, output: Tensor, y: Tensor, loss: Loss, gradient: Tensor) -> Tensor:
        """Return the negative gradient; see `OutputTarget.direction`."""
        return -gradient


@dataclass(frozen=True)
class GaussNewtonStep(OutputTarget):
    """``ĥ_L = h_L − β (H + μI)⁻¹ ∂C/∂h_L`` with ``H`` the Hessian of the loss in the output.

    Closed forms for squared error, softmax cross-entropy and binary cross-entropy; any other loss through autograd,
    sample by sample.

    Attributes:
        beta: ``β > 0``; 1 is the full step.
        damping: ``μ ≥ 0``; the softmax Hessian is singular, so cross-entropy needs ``μ > 0``.
    """

    damping: float = 0.1
    name: ClassVar[str] = "gauss-newton"
    needs_output: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the settings; a wrong one raises `ValueError`."""
        super().__post_init__()
        check_ranges(self, damping=(self.damping >= 0, "≥ 0"))

    def direction(self, output: Tensor, y: Tensor, loss: Loss, gradient: Tensor) -> Tensor:
        """Solve with the damped Hessian; see `OutputTarget.direction`."""
        flat, v = output.flatten(1), -gradient.flatten(1)
        width = flat.shape[1] if getattr(loss, "reduction", "mean") == "mean" else 1
        plain = getattr(loss, "weight", None) is None and getattr(loss, "pos_weight", None) is None
        if isinstance(loss, nn.MSELoss):
            solved = v / (2 / width + self.damping)
        elif isinstance(loss, nn.BCEWithLogitsLoss) and plain:
            p = flat.sigmoid()
            solved = v / (p * (1 - p) / width + self.damping)
        elif isinstance(loss, nn.CrossEntropyLoss) and plain and output.dim() == 2:
            if self.damping == 0:
                raise ValueError("the Hessian of cross-entropy is singular; set the output target's damping > 0")
            p = flat.softmax(1)
            inverse = 1 / (p + self.damping)
            # Sherman-Morrison on diag(p + μ) − ppᵀ; the denominator is 1 − Σ p²/(p+μ) = Σ pμ/(p+μ).
            shared = (p * inverse * v).sum(1, keepdim=True) / (p * inverse * self.damping).sum(1, keepdim=True)
            solved = inverse * (v + p * shared)
        else:
            solved = self._dense(output, y, loss, v)
        return solved.view_as(output)

    def _dense(self, output: Tensor, y: Tensor, loss: Loss, v: Tensor) -> Tensor:
        def one(h: Tensor, target: Tensor) -> Tensor:
            return loss(h.unsqueeze(0), target.unsqueeze(0))

        hessian = torch.func.vmap(torch.func.hessian(one))(output.detach(), y)
        size = v.shape[1]
        eye = torch.eye(size, dtype=v.dtype, device=v.device)
        return torch.linalg.solve(hessian.reshape(-1, size, size) + self.damping * eye, v)


@dataclass(frozen=True)
class LabelTarget(OutputTarget):
    """``Δ_L = one-hot(y) − softmax(h_L)``: the label itself as the target (SDTP, Bartunov 2018, arXiv:1807.04587).

    The source puts the softmax inside the top layer, and gives the layer below it the target
    ``h + g(one-hot) − g(softmax)``; with the affine decoder of the logits used here, that is the difference step from
    this ``Δ_L``. Float labels are compared with what the loss compares them with: the softmax, the sigmoid or ``h_L``.

    Attributes:
        beta: share of the way to the label; 1 is the source's.
    """

    beta: float = 1.0
    name: ClassVar[str] = "label"
    needs_output: ClassVar[bool] = True

    def direction(self, output: Tensor, y: Tensor, loss: Loss, gradient: Tensor) -> Tensor:
        """Compare with the label; see `OutputTarget.direction`."""
        if y.is_floating_point():
            return _towards(y, output, gradient)
        return nn.functional.one_hot(y, output.shape[1]).to(output) - output.softmax(1)


def _towards(y: Tensor, output: Tensor, gradient: Tensor) -> Tensor:
    """Find what of the output the loss compares with float labels: probabilities of classes or of each unit, or it."""
    if not bool(gradient.any()):  # as where a process holds no samples
        return torch.zeros_like(output)
    for predicted in (output, output.softmax(1), output.sigmoid()):
        if y.shape == output.shape and _cosine(y - predicted, -gradient) > _ALIKE:
            return y - predicted
    if not bool(torch.isfinite(gradient.sum() + output.sum())):  # whoever looks at them says so
        return -gradient
    raise ValueError(
        "output target 'label' needs labels, or values that the loss compares the output with, such as by cross-entropy"
        " or squared error; choose the output target 'gradient'"
    )


_ALIKE = 0.99


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0, eps=1e-30))


OUTPUT_TARGETS: dict[str, type[OutputTarget]] = {t.name: t for t in (GradientStep, GaussNewtonStep, LabelTarget)}
