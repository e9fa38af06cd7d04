r"""Losses, each a mean over samples, that also know the distribution of labels for which they are ``−log p(y | z)``.

Natural-gradient methods draw labels from that distribution: with ``g`` the gradient of one sample's loss at such a
label, ``E[g gᵀ]`` is the Hessian of the loss in the output ``z``.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class SampledLoss(nn.Module):
    """A loss that can draw labels."""

    reduction = "mean"

    def draw(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Draw labels from what the network believes."""
        raise NotImplementedError


class SigmoidCrossEntropy(SampledLoss):
    """Cross-entropy of logits with targets in [0, 1], summed over pixels.

    >>> bool(SigmoidCrossEntropy()(torch.zeros(2, 3), torch.ones(2, 3)).isclose(3 * torch.tensor(2.0).log()))
    True
    """

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        """Compute the loss."""
        return functional.binary_cross_entropy_with_logits(output, y, reduction="sum") / len(output)

    def draw(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Draw every pixel; see `SampledLoss.draw`."""
        return torch.bernoulli(torch.sigmoid(output), generator=generator)


class SoftmaxCrossEntropy(SampledLoss):
    """Cross-entropy of logits with class labels, a mean over samples and positions."""

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        """Compute the loss."""
        return functional.cross_entropy(output.flatten(0, -2), y.flatten())

    def draw(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a class for each label; see `SampledLoss.draw`."""
        labels = torch.multinomial(output.flatten(0, -2).softmax(1), 1, generator=generator)
        return labels.view(output.shape[:-1])


class HalfSquaredError(SampledLoss):
    """``½‖z − y‖²``, summed over outputs.

    >>> float(HalfSquaredError()(torch.zeros(2, 3), torch.ones(2, 3)))
    1.5
    """

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        """Compute the loss."""
        return (output - y).square().sum() / (2 * len(output))

    def draw(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Draw around the output with variance 1; see `SampledLoss.draw`."""
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)
        return output + noise
