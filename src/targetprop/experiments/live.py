"""A run's curves while it trains: redrawn after its epochs, and shown where the run is in a notebook."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any

_SHARE = 0.1  # of the time: the most that drawing takes
_COST = 0.2  # seconds that a first drawing is taken to last


class Pace:
    """Does something again and again, as often as a tenth of the time allows."""

    def __init__(self) -> None:
        """Start the clock."""
        self._next = monotonic() + _COST / _SHARE

    def __call__(self, action: Callable[[], None]) -> None:
        """Do it, if it is time to."""
        start = monotonic()
        if start < self._next:
            return
        action()
        end = monotonic()
        self._next = end + (end - start) * (1 / _SHARE - 1)


class NotebookFigure:
    """A picture below a notebook's cell, replaced whenever it is shown again; outside of notebooks, nothing."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._shown: Any = None

    def show(self, path: Path) -> None:
        """Show a PNG file."""
        if not _in_notebook():
            return
        display = import_module("IPython.display")
        picture = display.Image(data=path.read_bytes(), format="png")
        if self._shown is None:
            self._shown = display.display(picture, display_id=True)
        else:
            self._shown.update(picture)


def _in_notebook() -> bool:
    """Tell whether a notebook's kernel runs this process; IPython is there then, and is not imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None
