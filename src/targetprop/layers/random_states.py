"""The states of PyTorch's random numbers: of the CPU, and of every GPU where there is one in use."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def random_states() -> list[Tensor]:
    """Copy them."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def set_random_states(states: list[Tensor]) -> None:
    """Set them to copies made before."""
    torch.set_rng_state(states[0])
    if states[1:]:
        torch.cuda.set_rng_state_all(states[1:])


@contextmanager
def forked_random_states(seed: int | None = None) -> Iterator[None]:
    """Draw for a while, from a seed if one is given; afterwards PyTorch draws as if nothing had been drawn.

    Args:
        seed: seed of what is drawn.

    Yields:
        Nothing.
    """
    states = random_states()
    try:
        if seed is not None:
            _seed(seed)
        yield
    finally:
        set_random_states(states)


def _seed(seed: int) -> None:
    """Seed the CPU, and GPUs that are in use: PyTorch would seed others later, when nothing could take it back."""
    gpu = torch.accelerator.current_accelerator()
    if gpu is None or (gpu.type == "cuda" and not torch.cuda.is_initialized()):
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
