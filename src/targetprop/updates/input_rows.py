r"""The rows whose second moment is the factor of a map's inputs.

With inputs ``a_t`` and drawn changes ``s_t`` at the positions ``t`` of a sample, a change ``N`` of the map is felt as
``⟨g, N⟩`` with ``g = Σ_t s_t a_tᵀ``. What is felt along the inputs is ``E[gᵀ g]``.

* *Many positions and one label for each sample*, as of images: what the positions feel adds up. Combinations of the
  outputs with white noise ``ω`` give rows ``gᵀ ω = Σ_t (s_t · ω) a_t``, of which a few are enough.
* *One position, or a label for each*, as of texts: without the terms of two positions, which have mean 0 where one does
  not see the other's label, and with ``s`` independent of ``a``, as K-FAC takes them to be, this is ``E[a aᵀ]`` times a
  number. The rows are ``a_t``.

Source: one label for all positions is "reduce", and a label for each is "expand", in Eschenhagen 2023,
arXiv:2311.00636; there ``a_t`` is summed without ``s_t``. ``E[gᵀ g]`` of gradients is a factor of Shampoo (Gupta 2018,
arXiv:1802.09568).
"""

import torch
from torch import Tensor

from targetprop.updates.asked import Regression

_COMBINATIONS = 4  # of the outputs of a sample


def input_rows(asked: Regression, dtype: torch.dtype, step: int, rows: int, stride: int) -> Tensor:
    """Make the rows of the samples held here.

    Args:
        asked: the regression, with drawn changes.
        dtype: of the rows.
        step: which step of the map this is; each combines the outputs in another way.
        rows: how many positions are looked at at once, where they are summed.
        stride: of how many positions one is looked at, where they are not.

    Returns:
        Shape ``(r, d)``.
    """
    if asked.positions == 1 or asked.common.labels > 1:
        return asked.some_a(slice(None), stride).to(dtype)
    positions, samples = asked.positions, max(1, rows // asked.positions)
    felt = asked.some_felt(1).to(dtype)
    felt = felt.reshape(len(felt) // positions, positions, asked.outputs)
    if asked.outputs > _COMBINATIONS:
        generator = torch.Generator().manual_seed(step)
        felt = felt @ torch.randn(asked.outputs, _COMBINATIONS, generator=generator, device="cpu").to(felt)
    found = []
    for first in range(0, len(felt), samples):  # the inputs at all positions at once would fill the memory
        a = asked.some_a(slice(first, first + samples), 1).to(dtype).unflatten(0, (-1, positions))
        found.append((felt[first : first + samples].mT @ a).flatten(0, 1))
    return torch.cat(found) if found else felt.new_zeros(0, asked.inputs)
