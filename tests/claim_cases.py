"""What the tests of claims share: inverses broken on purpose, numbers by name, and figures from the saved record."""

import json
from collections.abc import Callable
from dataclasses import replace

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from targetprop.claims import Claim
from targetprop.claims.altered import Alter
from targetprop.claims.networks import orthogonal
from targetprop.decoders import Inverse


def changed(change: Callable[[Tensor], Tensor]) -> Alter:
    """Apply a map to what every inverse returns."""
    return lambda g: Inverse(lambda y: change(g(y)), lambda y, moved: change(g.difference(y, moved)))


def scaled(factor: float) -> Alter:
    return changed(lambda values: factor * values)


def turn(values: Tensor) -> Tensor:
    """Keep the size and change the direction."""
    return values @ orthogonal(values.shape[1], torch.Generator().manual_seed(5))


negated, rotated = scaled(-1.0), changed(turn)


def number(claim: Claim, what: str) -> float:
    """Look up the first number whose name holds some words."""
    return next(n.values[0] for n in (*claim.measured, *claim.limits) if what in n.what)


def drawn(draw: Callable[[Claim], Figure], claim: Claim) -> list[Axes]:
    """Draw from the record as it is saved; every panel is named and shows a prediction, dashed and black."""
    axes = draw(replace(claim, data=json.loads(json.dumps(claim.data, allow_nan=False)))).axes
    panels = [panel for panel in axes if panel.get_title(loc="left")]
    for panel in panels:
        assert panel.get_xlabel() and panel.get_ylabel()
        assert any(line.get_linestyle() == "--" and line.get_color() == "black" for line in panel.lines)
    return axes


def names(axes: Axes) -> list[str]:
    """Read the legend of a panel."""
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]
