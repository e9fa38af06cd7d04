"""Counts the steps that were skipped because their numbers were not finite, and stops a run that has too many."""

from dataclasses import dataclass


@dataclass
class Skipped:
    """The skipped steps of a run.

    Attributes:
        limit: how many in a row stop the run.
        total: how many so far.
        in_a_row: how many since the last step that was taken.
    """

    limit: int
    total: int = 0
    in_a_row: int = 0

    def observe(self, reason: str | None) -> None:
        """Hear of a step."""
        self.in_a_row = 0 if reason is None else self.in_a_row + 1
        self.total += reason is not None
        if self.in_a_row >= self.limit:
            steps = "a step was" if self.limit == 1 else f"{self.limit} steps in a row were"
            raise FloatingPointError(f"{steps} skipped: {reason}")
