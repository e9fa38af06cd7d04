"""PyTorch's own random numbers, dropout's say: every rank has a stream of its own.

What is drawn for a whole batch has the same seed on every rank; what PyTorch draws inside a module does not know of
other ranks, so equal streams would give equal masks to the rows of different ranks.
"""

from hashlib import sha256

import torch
from torch import Tensor

RandomState = dict[str, Tensor]


def begin_random_stream(rank: int, seed: int, step: int = 0) -> None:
    """Begin a rank's stream; rank 0 goes on with that of a single process."""
    if rank:
        digest = sha256(f"{seed} {rank} {step}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8]) % 2**63)


def random_state() -> RandomState:
    """Collect the states of this process."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def restore_random_state(states: list[RandomState], rank: int, seed: int, step: int) -> None:
    """Go on with a rank's stream, or begin one where the checkpoint has none for it."""
    if rank >= len(states):
        begin_random_stream(rank, seed, step)
        return
    torch.set_rng_state(states[rank]["cpu"])
    if "cuda" in states[rank] and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[rank]["cuda"])
