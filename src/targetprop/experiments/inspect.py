"""``targetprop inspect``: measures the inverses and targets of a trained run, and says what to change."""

import sys
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from shutil import get_terminal_size
from textwrap import TextWrapper
from time import monotonic
from typing import Any

import torch

from targetprop.diagnostics import Inspection, advise, inspect_targets
from targetprop.diagnostics.inverse_quality import EXTRA_STEPS, TRIAL_STEPS
from targetprop.experiments.build import build
from targetprop.experiments.config import RunConfig
from targetprop.experiments.errors import CommandError, writing_into
from targetprop.experiments.inspection_table import format_inspection
from targetprop.experiments.memory import fitting
from targetprop.experiments.options import read_request
from targetprop.experiments.parser import build_config
from targetprop.experiments.progress import error_console, say
from targetprop.experiments.resume import parse_stored, read_stored_values
from targetprop.report.inspection import INSPECTION, draw_inspection
from targetprop.report.inspection_page import render_inspection
from targetprop.runs.atomic import write_atomic
from targetprop.runs.checkpoint import has_checkpoint, load_checkpoint
from targetprop.runs.encode import encode_json
from targetprop.runs.status import read_status
from targetprop.settings import check_ranges, check_types

PICTURE, PAGE = "inspection.png", "inspection.html"
_PATIENCE = 2.0  # seconds between two words where there is no terminal


@dataclass(frozen=True)
class Request:
    """Measures, layer by layer, what the inverses and the targets of a trained run do on test samples.

    Prints a table and a sentence per layer on what to change; writes inspection.json, inspection.png and
    inspection.html into the run's folder. Nothing is trained.

    Attributes:
        run: the folder of a run.
        samples: test samples to look at, evenly spread.
        device: auto, cpu or cuda; null is the run's own.
    """

    run: str
    samples: int = 64
    device: str | None = None

    def __post_init__(self) -> None:
        """Check the request; a wrong one raises `ValueError`."""
        check_types(self, "--")
        check_ranges(self, "--", samples=(self.samples >= 1, "a whole number ≥ 1"))


def inspect(argv: list[str]) -> int:
    """Run the command."""
    (request,) = read_request(argv, "targetprop inspect RUN [options]", Request)
    run = Path(request.run).expanduser()
    stored = read_stored_values(run, "targetprop inspect")
    parse_stored(run, stored)
    config = build_config(stored | ({"device": request.device} if request.device else {}))
    if not has_checkpoint(run):
        raise CommandError(f"{run} has no checkpoint yet; wait for the end of its first epoch, or train again")
    status = read_status(run)
    if status.word != "finished":
        say(f"note: {status.sentence}")
    found, epoch = _measure(config, run, request.samples)
    record = _record(config, found, epoch)
    table = format_inspection(record)
    _write(run, record, table)
    sys.stdout.write(f"{table}\n\n{_advice(record)}\n\nfigure: {run / PICTURE}\npage: {run / PAGE}\n")
    return 0


def _measure(config: RunConfig, run: Path, samples: int) -> tuple[Inspection, int]:
    state, data = build(config, saved=load_checkpoint(run))
    engine: Any = state.engine  # the baseline is refused by the inspection
    count = min(samples, len(data.test_x))
    chosen = torch.arange(count, device=data.test_x.device) * len(data.test_x) // count
    console, last = error_console(), monotonic()
    status = console.status("measuring")

    def tell(number: int, layers: int) -> None:
        nonlocal last
        text = f"measuring layer {number} of {layers}"
        status.update(text)
        if not console.is_terminal and monotonic() > last + _PATIENCE:
            console.print(text, soft_wrap=True)
            last = monotonic()

    with status, fitting(f"the inspection of {count} samples", "give fewer --samples"):
        try:
            found = inspect_targets(engine, data.test_x[chosen], data.test_y[chosen], on_layer=tell)
        except (ValueError, FloatingPointError) as error:
            raise CommandError(str(error)) from error
    return found, state.epoch


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


def _write(run: Path, record: dict[str, Any], table: str) -> None:
    with writing_into(run):
        write_atomic(run / INSPECTION, encode_json(record))
        figure, picture = draw_inspection(run), BytesIO()
        figure.savefig(picture, format="png", dpi=130)
        write_atomic(run / PICTURE, picture.getvalue())
        write_atomic(run / PAGE, render_inspection(record, table, figure).encode())
