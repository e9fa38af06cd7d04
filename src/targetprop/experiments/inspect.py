"""``targetprop inspect``: measures the inverses and targets of a trained run, and says what to change."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from shutil import get_terminal_size
from textwrap import TextWrapper
from threading import Timer
from typing import Any

import torch

import targetprop as tp
from targetprop.diagnostics import Inspection, advise, inspect_targets
from targetprop.diagnostics.inverse_quality import EXTRA_STEPS, TRIAL_STEPS
from targetprop.experiments.arguments import Arguments, read_command_line
from targetprop.experiments.build import build
from targetprop.experiments.config import RunConfig
from targetprop.experiments.errors import FAILURE, CommandError
from targetprop.experiments.inspection_table import format_inspection
from targetprop.experiments.memory import fitting
from targetprop.experiments.number_range import read_count
from targetprop.experiments.parse import parse_config
from targetprop.experiments.progress import error_console, say
from targetprop.experiments.resume import parse_stored, read_stored_values
from targetprop.report.inspection import INSPECTION, draw_inspection
from targetprop.runs.atomic import write_atomic
from targetprop.runs.checkpoint import has_checkpoint, load_checkpoint
from targetprop.runs.encode import encode_json
from targetprop.runs.status import read_status

PICTURE = "inspection.png"
_PATIENCE = 2.0  # seconds that a layer takes without a word where there is no terminal
_USAGE = f"""usage: targetprop inspect RUN [--samples N] [--device NAME]

Measures, layer by layer, what the inverses and the targets of a trained run do on test samples. Prints a table and a
sentence per layer on what to change; writes {INSPECTION} and {PICTURE} into the run's folder. Nothing is trained.

options:
  --samples N    test samples to look at, evenly spread (default: 64)
  --device NAME  auto, cpu or cuda (default: the run's own)
"""


@dataclass(frozen=True)
class _Request:
    run: Path
    samples: int
    changes: dict[str, str]


def inspect(argv: list[str]) -> int:
    """Run the command."""
    if "-h" in argv or "--help" in argv:
        sys.stdout.write(_USAGE)
        return 0
    request = _read(argv)
    stored = read_stored_values(request.run, "targetprop inspect")
    parse_stored(request.run, stored)
    config = parse_config(Arguments({**stored, **request.changes}))
    if not has_checkpoint(request.run):
        raise CommandError(f"{request.run} has no checkpoint yet; wait for the end of its first epoch, or train again")
    status = read_status(request.run)
    if status.word != "finished":
        say(f"note: {status.sentence}")
    found, epoch = _measure(config, request)
    record = _record(config, found, epoch)
    _write(request.run, record)
    sys.stdout.write(f"{format_inspection(record)}\n\n{_advice(record)}\n\nfigure: {request.run / PICTURE}\n")
    return 0


def _read(argv: Sequence[str]) -> _Request:
    if not argv or argv[0].startswith("-"):
        raise CommandError(
            "give the folder of a run first: targetprop inspect RUN; targetprop inspect --help says more"
        )
    arguments = read_command_line(argv[1:], "inspect")
    samples, device = arguments.values.pop("samples", "64"), arguments.values.pop("device", None)
    unknown = [*arguments.values, *sorted(arguments.flags)]
    if unknown:
        raise CommandError(f"targetprop inspect has no option --{unknown[0]}; its options are --samples and --device")
    changes = {} if device is None else {"device": device}
    return _Request(Path(argv[0]).expanduser(), read_count("samples", samples), changes)


def _measure(config: RunConfig, request: _Request) -> tuple[Inspection, int]:
    state, data = build(config, saved=load_checkpoint(request.run))
    assert isinstance(state.engine, tp.TargetPropagation)
    count = min(request.samples, len(data.test_x))
    chosen = torch.arange(count, device=data.test_x.device) * len(data.test_x) // count
    with _Progress() as progress, fitting(f"the inspection of {count} samples", "give fewer --samples"):
        try:
            found = inspect_targets(state.engine, data.test_x[chosen], data.test_y[chosen], on_layer=progress.on_layer)
        except (ValueError, FloatingPointError) as error:
            raise CommandError(str(error)) from error
    return found, state.epoch


class _Progress:
    """Says on the error stream which layer is being measured: at once on a terminal, elsewhere once it takes long."""

    def __init__(self) -> None:
        self._console, self._timer = error_console(), None
        self._status = self._console.status("measuring")

    def __enter__(self) -> "_Progress":
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()
        if self._timer is not None:
            self._timer.cancel()

    def on_layer(self, number: int, layers: int) -> None:
        text = f"measuring layer {number} of {layers}"
        self._status.update(text)
        if self._console.is_terminal:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = Timer(_PATIENCE, lambda: self._console.print(text, soft_wrap=True))
        self._timer.daemon = True
        self._timer.start()


def _record(config: RunConfig, found: Inspection, epoch: int) -> dict[str, Any]:
    method = config.method
    layers = [asdict(layer) | {"advice": advise(layer, method)} for layer in found.layers]
    return {
        "method": method.name,
        "inversion": asdict(method.inversion) | {"rule": method.inversion.name},
        "propagation": method.propagation,
        "data": config.data.name,
        "seed": config.loop.seed,
        "epoch": epoch,
        "samples": found.samples,
        "loss": found.loss,
        "extra_steps": EXTRA_STEPS,
        "trial_steps": TRIAL_STEPS,
        "layers": layers,
    }


def _advice(record: dict[str, Any]) -> str:
    width = max(80, min(120, get_terminal_size((110, 24)).columns))
    wrapper = TextWrapper(width, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(wrapper.fill(layer["advice"]) for layer in record["layers"])


def _write(run: Path, record: dict[str, Any]) -> None:
    try:
        write_atomic(run / INSPECTION, encode_json(record))
        picture = BytesIO()
        draw_inspection(run).savefig(picture, format="png", dpi=130)
        write_atomic(run / PICTURE, picture.getvalue())
    except OSError as error:
        raise CommandError(f"the results cannot be written into {run} ({error})", FAILURE) from error
