r"""Steps of weight mirrors: from probes ``E`` and a map's answers ``Z`` to a better ``V``, worked out and then taken.

Between the two one can look whether the numbers are finite; see `targetprop.decoders.mirror`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from targetprop.decoders.conv import LearnedMap

_DAMPING = 1e-3  # μ, with probes of unit length


@dataclass(frozen=True, eq=False)
class MirrorStep:
    """A step of a mirror.

    Attributes:
        weight: ``V``, not yet changed.
        missed: ``‖Z − E V‖²`` before the step, a scalar.
        asked: ``‖Z‖²``, a scalar.
        new: ``V`` after the step; None where `factors` say what is added.
        factors: two matrices whose product is added to ``V``.
    """

    weight: Tensor
    missed: Tensor
    asked: Tensor
    new: Tensor | None = None
    factors: tuple[Tensor, ...] = ()

    @property
    def share(self) -> Tensor:
        """The share of the answers that ``V`` missed before the step, a scalar."""
        return self.missed / self.asked.clamp_min(torch.finfo(self.asked.dtype).tiny)

    @property
    def numbers(self) -> tuple[Tensor, ...]:
        """What must be finite for ``V`` to stay so; the factors are where ``missed`` is."""
        return (self.missed,) if self.new is None else (self.missed, self.new)

    def take(self) -> None:
        """Change ``V`` in place."""
        if self.new is None:
            self.weight.addmm_(*self.factors)
        else:
            self.weight.copy_(self.new)


def mirror_linear(weight: Tensor, probes: Tensor, answers: Tensor) -> MirrorStep:
    """Find the nearest matrix that explains the answers.

    Args:
        weight: ``V``, shape ``(d, k)``; ``Wᵀ`` is what it approaches.
        probes: ``E``, shape ``(n, d)``.
        answers: ``Z = E Wᵀ``, shape ``(n, k)``.

    Returns:
        The step to it.

    >>> w = torch.tensor([[1.0, 2.0, 3.0]])
    >>> v, e = torch.zeros(3, 1), torch.eye(3)[:2]
    >>> step = mirror_linear(v, e, e @ w.T)
    >>> step.take()
    >>> step.share, v.T.round(decimals=2)
    (tensor(1.), tensor([[1., 2., 0.]]))
    """
    missed = answers - probes @ weight
    sizes = missed.square().sum(), answers.square().sum()
    lengths = probes.square().sum(1, keepdim=True).clamp_min(torch.finfo(probes.dtype).tiny).rsqrt()
    e, missed = probes * lengths, missed * lengths
    gram = e @ e.T
    gram.diagonal().add_(_DAMPING)
    return MirrorStep(weight, *sizes, factors=(e.T, torch.cholesky_solve(missed, torch.linalg.cholesky_ex(gram).L)))


def mirror_conv(decoder: LearnedMap, probes: Tensor, answers: Tensor, weight: Tensor | None = None) -> MirrorStep:
    """Go down the gradient of ``‖Z − Vᵀ E‖²`` to the minimum along it.

    Args:
        decoder: the learned convolution ``V``.
        probes: ``E``, shape ``(n, channels, …)`` of the convolution's input.
        answers: ``Z``, shape of its output without the bias.
        weight: another ``V`` to begin at, such as the end of a step that has not been taken.

    Returns:
        The step to it.
    """
    weight = decoder.weight if weight is None else weight
    missed = answers - decoder.transpose(probes, weight)
    descent = decoder.weight_gradient(probes, missed)
    response = decoder.transpose(probes, descent).square().sum()
    length = descent.square().sum() / response.clamp_min(torch.finfo(response.dtype).tiny)
    return MirrorStep(decoder.weight, missed.square().sum(), answers.square().sum(), new=weight + descent * length)
