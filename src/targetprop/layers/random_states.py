"""The states of PyTorch's random numbers: of the CPU, and of every GPU where there is one in use."""

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
