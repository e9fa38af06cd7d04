"""The table of an inspection, as plain text for a terminal."""

from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

_LONGEST = 26  # longest name of a layer or of an inverse that is shown in full
_SPACES = {"output": "f∘g", "input": "g∘f"}
_COLUMNS = (  # title with its group, where the value is, and its format
    ("layer", "name", ""), ("units", "width", ""), ("inverse", "inverse.kind", ""), ("norm\nof", "inverse.space", ""),
    ("\nmedian", "inverse.contraction", ".3f"), ("\nmax", "inverse.contraction_max", ".3f"),
    ("\n< 1", "inverse.contracting", ".0%"), ("residual\nrun", "inverse.residual", ".3f"),
    ("\n+{extra_steps}", "inverse.residual_iterated", ".3f"), ("samples\nconv.", "inverse.converged", ".0%"),
    ("\ndiv.", "inverse.diverged", ".0%"), ("\nfell", "inverse.fallback", ".0%"), ("influence", "influence", ".3g"),
    ("angle\nBP", "angle_backprop", ".0f"), ("\nGN", "angle_gauss_newton", ".0f"), ("\ngrad", "angle_gradient", ".0f"),
)  # fmt: skip
_HEAD = """{method} on {data}, seed {seed}, after epoch {epoch}; {samples} test samples, loss {loss:.3g}
targets: {propagation}, {rule}

"""
_LEGEND = """
norm       of a step of the iteration, id − α f∘g, or id − α g∘f if the layer widens; it converges below 1
residual   ‖t − f(x)‖ / ‖t − y₀‖ of the run's own inversion, and {extra_steps} steps on; 0 is exact, 1 no progress
samples    share that converges, or diverges, within {trial_steps} steps; that fell back to difference targets
influence  ‖Δ_L‖ / ‖Δ_l‖: how many times larger than the layer's the change of the output is
angle      in degrees, of the target to back-propagation's (BP), Gauss-Newton's (GN); of the gradient to BP's (grad)"""


def format_inspection(record: dict[str, Any]) -> str:
    """Write what was measured as a table, a row per layer."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title, key, form in _COLUMNS:
        table.add_column(
            title.format_map(record),
            justify="right" if form or key == "width" else "left",
            vertical="bottom",
            no_wrap=True,
        )
    for layer in record["layers"]:
        table.add_row(*(_cell(layer, key, form) for _, key, form in _COLUMNS))
    console = Console(file=StringIO(), width=1000, color_system=None, markup=False, emoji=False)
    with console.capture() as written:
        console.print(table)
    rows = "\n".join(map(str.rstrip, written.get().splitlines()))
    return _HEAD.format_map(record | {"rule": _rule(record["inversion"])}) + rows + "\n" + _LEGEND.format_map(record)


def _rule(rule: dict[str, Any]) -> str:
    if "steps" not in rule:
        return rule["rule"]
    size = f"of α = {rule['alpha']:g}" if "alpha" in rule else f"with damping {rule['damping']:g}"
    return f"{rule['rule']}, {rule['steps']} {'step' if rule['steps'] == 1 else 'steps'} {size}"


def _cell(layer: dict[str, Any], key: str, form: str) -> str:
    part = layer["inverse"] if "." in key else layer
    value = None if part is None else part[key.rpartition(".")[2]]
    text = "–" if value is None else format(_SPACES.get(value, value), form)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
