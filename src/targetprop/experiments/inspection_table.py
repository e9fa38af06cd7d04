"""The table of an inspection, as plain text for a terminal."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_LONGEST = 26  # longest name of a layer or of an inverse that is shown in full
_SPACES = {"output": "f∘g", "input": "g∘f"}
Layer = dict[str, Any]


def format_inspection(record: dict[str, Any]) -> str:
    """Write what was measured as a table, a row per layer."""
    rule, extra, trial = record["inversion"], record["extra_steps"], record["trial_steps"]
    columns = _columns(extra)
    titles = [column.title for column in columns]
    rows = [[column.write(layer) for column in columns] for layer in record["layers"]]
    widths = [max(map(len, cells)) for cells in zip(titles, *rows, strict=True)]
    lines = [
        f"{record['method']} on {record['data']}, seed {record['seed']}, after epoch {record['epoch']};"
        f" {record['samples']} test samples, loss {record['loss']:.3g}",
        f"targets: {record['propagation']}, {rule['rule']}{_steps(rule)}",
        "",
        _join_groups([column.group for column in columns], widths),
        *(_join(row, widths) for row in (titles, *rows)),
        "",
        "norm       of a step of the iteration, id − α f∘g, or id − α g∘f if the layer widens; it converges below 1",
        f"residual   ‖t − f(x)‖ / ‖t − y₀‖ of the run's own inversion, and {extra} steps on; 0 is exact, 1 no progress",
        f"samples    share that converges, or diverges, within {trial} steps; that fell back to difference targets",
        "influence  ‖Δ_L‖ / ‖Δ_l‖: how many times larger than the layer's the change of the output is",
        "angle      of the target to back-propagation's (BP) and Gauss-Newton's (GN); of the gradient to BP's (grad)",
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Column:
    group: str
    title: str
    write: Callable[[Layer], str]


def _columns(extra: int) -> list[_Column]:
    return [
        _Column("", "layer", lambda layer: _cut(layer["name"])),
        _Column("", "units", lambda layer: str(layer["width"])),
        _Column("", "inverse", lambda layer: _cut(layer["inverse"]["kind"]) if layer["inverse"] else "–"),
        _Column("norm", "of", lambda layer: _SPACES[layer["inverse"]["space"]] if layer["inverse"] else "–"),
        _Column("norm", "median", _of_inverse("contraction", ".3f")),
        _Column("norm", "max", _of_inverse("contraction_max", ".3f")),
        _Column("norm", "< 1", _of_inverse("contracting", ".0%")),
        _Column("residual", "run", _of_inverse("residual", ".3f")),
        _Column("residual", f"+{extra}", _of_inverse("residual_iterated", ".3f")),
        _Column("samples", "conv.", _of_inverse("converged", ".0%")),
        _Column("samples", "div.", _of_inverse("diverged", ".0%")),
        _Column("samples", "fell", _of_inverse("fallback", ".0%")),
        _Column("", "influence", lambda layer: _number(layer["influence"], ".3g")),
        _Column("angle (°)", "BP", lambda layer: _number(layer["angle_backprop"], ".0f")),
        _Column("angle (°)", "GN", lambda layer: _number(layer["angle_gauss_newton"], ".0f")),
        _Column("angle (°)", "grad", lambda layer: _number(layer["angle_gradient"], ".0f")),
    ]


def _steps(rule: dict[str, Any]) -> str:
    if "steps" not in rule:
        return ""
    size = f"of α = {rule['alpha']:g}" if "alpha" in rule else f"with damping {rule['damping']:g}"
    return f", {rule['steps']} {'step' if rule['steps'] == 1 else 'steps'} {size}"


def _of_inverse(name: str, form: str) -> Callable[[Layer], str]:
    return lambda layer: _number(layer["inverse"][name], form) if layer["inverse"] else "–"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _join(cells: list[str], widths: list[int]) -> str:
    left = (0, 2)  # texts; the rest are numbers
    padded = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return "  ".join(padded).rstrip()


def _join_groups(groups: list[str], widths: list[int]) -> str:
    """Write each group's name once, where its columns begin."""
    line, start = "", 0
    for before, group, width in zip(["", *groups], groups, widths, strict=False):
        if group != before:
            line = line.ljust(start) + group
        start += width + 2
    return line.rstrip()
