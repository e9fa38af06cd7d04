"""Deterministic algorithms for the time of a run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from targetprop.experiments.errors import FAILURE, CommandError

COST = (
    "deterministic algorithms cost nothing that could be measured in a step on the CPU, where runs repeat bit for bit"
    " without them too; on a GPU they may be slower"
)
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Use deterministic algorithms only, and put the earlier setting back at the end."""
    if not wanted:
        yield
        return
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(_WORKSPACE)
    os.environ.setdefault(_WORKSPACE, ":4096:8")  # without it matrix products on a GPU refuse to be deterministic
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise CommandError(f"--deterministic stops the run: {reason}; leave the option out", FAILURE) from error
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)
