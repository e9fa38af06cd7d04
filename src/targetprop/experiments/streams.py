"""The random numbers of the network itself, dropout's say: every rank has a stream of its own.

What is drawn for a whole batch has the same seed on every rank; what PyTorch draws inside a module does not know of
other ranks, so equal streams would give equal masks to the rows of different ranks.
"""

from hashlib import sha256

import torch
from torch import Tensor

from targetprop.experiments.checkpoint import random_state, restore_random_state
from targetprop.ranks import Ranks

State = dict[str, Tensor]


def begin_stream(ranks: Ranks, seed: int, step: int = 0) -> None:
    """Begin this rank's stream; rank 0 goes on with that of a single process."""
    if ranks.rank:
        digest = sha256(f"{seed} {ranks.rank} {step}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8]) % 2**63)


def gather_streams(ranks: Ranks) -> list[State]:
    """Collect the streams of all ranks but the first for a checkpoint."""
    if ranks.alone:
        return []
    names = ("cpu", "cuda") if ranks.device.type == "cuda" else ("cpu",)
    own, found = random_state(), {}
    for name in names:
        rows = torch.zeros(ranks.size, len(own[name]), dtype=torch.uint8, device=ranks.device)
        rows[ranks.rank] = own[name].to(ranks.device)
        ranks.sum_([rows])
        found[name] = rows.cpu()
    return [{name: found[name][rank].clone() for name in names} for rank in range(1, ranks.size)]


def restore_stream(ranks: Ranks, first: State, others: list[State], seed: int, step: int) -> None:
    """Go on with this rank's stream, or begin one where the checkpoint has none for it."""
    restore_random_state(first)
    if 0 < ranks.rank <= len(others):
        restore_random_state(others[ranks.rank - 1])
    else:
        begin_stream(ranks, seed, step)
