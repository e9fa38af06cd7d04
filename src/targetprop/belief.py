r"""What a network believes of its labels: the distribution whose ``−log p(y | h_L)`` the loss is.

A loss is called as the user wrote it, so its distribution shows in its gradient: ``∂C/∂h_L = w (p − ỹ)``, with ``ỹ``
the label and ``p`` the softmax, the sigmoid or ``h_L`` itself (a Gaussian of variance 1), and ``w`` the loss's own
scale. With labels ``ỹ`` drawn from it, ``s = ỹ − p`` has mean 0 and ``E[s sᵀ]`` is the Hessian of ``−log p`` in
``h_L``: what the distribution feels of a change of the output.

>>> z, y = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]), torch.tensor([0, 1])
>>> gradient = z.softmax(1) - nn.functional.one_hot(y, 3)
>>> find_belief(z, y, 0.5 * gradient, Batch(2)).kind
'softmax'
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from targetprop.batch import Batch

_ALIKE = 0.9  # cosine of a gradient to that of a distribution; smoothed labels and weights of classes lower it

Kind = Literal["softmax", "sigmoid", "identity"]
KINDS: tuple[tuple[Kind, int], ...] = (("softmax", -1), ("softmax", 1), ("sigmoid", -1), ("identity", -1))


@dataclass(frozen=True)
class Belief:
    """A distribution of labels.

    Attributes:
        kind: "softmax" of classes, "sigmoid" of units each on its own, or "identity", a Gaussian of variance 1.
        dim: where the classes are; of no meaning for the others.
        scale: ``w``, what the loss of a sample is of ``−log p``, per row of the output.
    """

    kind: Kind
    dim: int
    scale: float

    def labels(self, output: Tensor, batch: Batch) -> int:
        """Count the labels of a sample, such as one of an image, and one for each position of a text.

        Args:
            output: ``h_L``, shape ``(n, …)``, or with the positions of all samples, or some, in its first axis.
            batch: which samples of the step these are.

        Returns:
            The number, rounded up where samples have more or fewer.
        """
        if output.dim() < 2:
            return 1
        each = max(1, -(-len(output) // max(1, batch.rows)))
        return max(1, each * output.shape[1:].numel() // max(1, output.shape[self.dim]))

    def draw(self, output: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        """Draw labels and compare: ``s = ỹ − p``.

        Args:
            output: ``h_L``, shape ``(n, …)``.
            batch: which samples of the step these are.
            generator: source of randomness.

        Returns:
            Shape of the output.
        """
        p = _mean(self.kind, self.dim, output)
        if self.kind == "softmax":
            classes = p.movedim(self.dim, -1)
            noise = _noise(classes[..., 0], batch, generator)
            passed = classes.cumsum(-1) < torch.special.ndtr(noise).unsqueeze(-1)
            label = passed.sum(-1).clamp(max=classes.shape[-1] - 1)
            return (nn.functional.one_hot(label, classes.shape[-1]).to(p) - classes).movedim(-1, self.dim)
        noise = _noise(output, batch, generator)
        return noise if self.kind == "identity" else (torch.special.ndtr(noise) < p).to(p) - p

    def excess(self, output: Tensor, gradient: Tensor) -> Tensor:
        """Measure how far a loss is above the least of any output, ``w Σ KL(ỹ ‖ p)``, with ``ỹ = p − ∂C/∂h_L / w``.

        A loss of labels with shares, such as grey pixels or smoothed classes, has their entropy as its least value.

        Args:
            output: ``h_L``, shape ``(n, …)``.
            gradient: of each sample's loss in the output, shape of that.

        Returns:
            The sum over the samples, a scalar; a Gaussian's divergence is ``½ |ỹ − h_L|²``.
        """
        z, away = output.detach(), gradient.detach() / self.scale
        z, away = (v.to(torch.promote_types(v.dtype, torch.float32)) for v in (z, away))
        if self.kind == "identity":
            return 0.5 * self.scale * away.square().sum()
        log_p = z.log_softmax(self.dim) if self.kind == "softmax" else nn.functional.logsigmoid(z)
        label = (log_p.exp() - away).clamp(0.0, 1.0)  # weights of classes can take it out of [0, 1]
        found = torch.xlogy(label, label) - label * log_p
        if self.kind == "sigmoid":
            found += torch.xlogy(1 - label, 1 - label) - (1 - label) * (log_p - z)
        return self.scale * found.sum().clamp(min=0)


def find_belief(output: Tensor, y: Any, gradient: Tensor, batch: Batch) -> Belief | None:
    """Find the distribution whose gradient a loss has.

    Args:
        output: ``h_L``, shape ``(n, …)``.
        y: labels, of any form.
        gradient: of each sample's loss in the output, shape of that.
        batch: which samples of the step these are.

    Returns:
        The distribution of the most similar gradient; None if there is none known.
    """
    best, found = _ALIKE, None
    for kind, dim in KINDS:
        if kind == "softmax" and dim == output.dim() - 1:  # the last axis was tried
            continue
        guess = _guess(kind, dim, output, y, gradient)
        pairs = ((guess, gradient), (guess, guess), (gradient, gradient))
        sums = torch.stack([(a * b).sum(dtype=torch.double) for a, b in pairs])
        batch.sum_([sums])
        both, own, asked = sums.tolist()
        if both > best * (own * asked) ** 0.5:
            best, found = both / (own * asked) ** 0.5, Belief(kind, dim, both / own)
    return found


def _guess(kind: str, dim: int, output: Tensor, y: Any, gradient: Tensor) -> Tensor:
    """Compute what the gradient would be, ``p − ỹ``; zero where labels and output do not fit each other."""
    if isinstance(y, Tensor) and y.shape == output.shape and y.is_floating_point():  # classes may have shares, too
        return _mean(kind, dim, output) - y
    if kind != "softmax" or output.dim() < 2 or output.shape[dim] < 2 or not len(output):
        return output.new_zeros(())
    p = output.softmax(dim)
    least = gradient.min(dim, keepdim=True)  # the label's, p − 1; where it rounds to 0 the network is sure of the label
    place = torch.where(least.values < 0, least.indices, p.argmax(dim, keepdim=True))
    label = torch.zeros_like(p).scatter_(dim, place, 1.0)
    return (p - label) * gradient.ne(0).any(dim, keepdim=True)  # positions may be ignored


def _noise(like: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
    """Draw white noise of the shape of a tensor, of whose first axis each sample may have several rows."""
    each = batch.each(len(like))
    if len(like) and not each:  # rows that were picked out, such as masked positions
        return torch.empty_like(like, memory_format=torch.contiguous_format).normal_(generator=generator)
    return batch.noise(max(1, each) * like.shape[1:].numel(), 1.0, generator, like).view(like.shape)


def _mean(kind: str, dim: int, output: Tensor) -> Tensor:
    return {"softmax": lambda: output.softmax(dim), "sigmoid": output.sigmoid, "identity": lambda: output}[kind]()
