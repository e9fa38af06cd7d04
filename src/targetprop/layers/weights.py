"""Names of the weights that calls use: what tells one map of a model from another."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from targetprop.layers.sites import memory


class Weights:
    """Knows weights by their memory, which several may share, as the parameters of a fused recurrent layer do.

    Args:
        models: whose parameters they are.

    >>> linear = nn.Linear(3, 2)
    >>> weights = Weights([linear])
    >>> weights.key(linear.weight.T, "")
    'weight'
    >>> weights.key(2 * linear.weight, "block")
    'block.effective 2×3'
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        """Begin with the parameters."""
        self._named: dict[int, list[tuple[str, Tensor]]] = {}
        self._computed: dict[str, list[int]] = {}  # memory of those computed from parameters, by where they are used
        for name, p in (named for model in models for named in model.named_parameters()):
            self.add(name, p)

    def __contains__(self, t: Tensor) -> bool:
        return memory(t) in self._named

    def add(self, name: str, t: Tensor) -> None:
        """Take another tensor in that is trained."""
        self._named.setdefault(memory(t), []).append((name, t))

    def key(self, t: Tensor, user: str) -> str:
        """Name a weight: a parameter by its own name, one computed from parameters by its user and its turn there.

        Args:
            t: the weight, or a view of it.
            user: name of the module that uses it.

        Returns:
            Its name.
        """
        if found := self._named.get(memory(t)):
            return next((name for name, p in reversed(found) if _lies_in(t, p)), found[-1][0])
        name = f"{user}.effective {'×'.join(map(str, t.shape))}".lstrip(".")
        known = self._computed.setdefault(name, [])
        if memory(t) not in known:
            known.append(memory(t))
        turn = known.index(memory(t))
        return f"{name}@{turn + 1}" if turn else name


def _lies_in(t: Tensor, whole: Tensor) -> bool:
    """Whether a tensor begins within the memory of a parameter, which may share its storage with others."""
    return t.layout != torch.strided or 0 <= t.storage_offset() - whole.storage_offset() < whole.numel()
