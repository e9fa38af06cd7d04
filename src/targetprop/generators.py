"""Sources of noise: one for each decoder, by name, so that what one draws does not depend on the others.

>>> noise = Generators(["2", "4"], seed=0, device=torch.device("cpu"))
>>> sorted(noise)
['2', '4']
"""

from collections.abc import Sequence

import torch

_STREAMS = 0x9E3779B1  # seeds lie so far apart


class Generators(dict[str, torch.Generator]):
    """A source for each decoder; one that is made later, such as a mirror of a new weight, gets the next.

    Args:
        names: what the decoders are called.
        seed: seed of all of them.
        device: where they draw.
    """

    def __init__(self, names: Sequence[str], seed: int, device: torch.device) -> None:
        """Make those that are known."""
        super().__init__()
        self._seed, self._device = seed, device
        for name in names:
            self[name]

    def __missing__(self, name: str) -> torch.Generator:
        seed = (self._seed + (len(self) + 1) * _STREAMS) % 2**63
        return self.setdefault(name, torch.Generator(device=self._device).manual_seed(seed))
