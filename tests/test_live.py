"""A run is seen while it trains: its curves after its epochs, its figure in a notebook, its metrics in a logger."""

import csv
import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from lightning.pytorch import loggers as lightning_loggers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runs import metrics, train
from targetprop.experiments import live, recorder
from targetprop.experiments.live import NotebookFigure, Pace

SMALL = "--network.widths 6 --batch_size 256 --data.limit 512 --log_every 2 --device cpu --epochs 2".split()


class Clock:
    """A clock that stands still until it is told the time."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    monkeypatch.setattr(live, "monotonic", clock := Clock())
    return clock


def test_drawing_takes_at_most_a_tenth_of_the_time(clock):
    pace, drawn = Pace(), []

    def draw() -> None:
        drawn.append(clock.now)
        clock.now += 0.5

    for _ in range(200):  # epochs of 0.25 s
        clock.now += 0.25
        pace(draw)
    assert 0.09 < 0.5 * len(drawn) / clock.now <= 0.1
    clock.now += 10
    for _ in range(3):  # and of 10 s, which leave time for every one
        pace(draw)
        clock.now += 10
    assert drawn[-3:] == pytest.approx([clock.now - 3 * 10.5 + 10.5 * i for i in range(3)])


def test_curves_are_redrawn_after_every_epoch_that_leaves_time(clock, tmp_path, monkeypatch):
    drawn = []

    def draw(run: Path) -> Path:
        drawn.append(metrics(run)[-1]["epoch"])
        return run

    def log(*arguments: object) -> None:
        plain(*arguments)
        clock.now += 1

    plain = recorder.RunRecorder.on_step
    monkeypatch.setattr(recorder.RunRecorder, "on_step", log)
    monkeypatch.setattr(recorder, "draw_curves", draw)
    assert train(*SMALL, "--epochs", 5, "--out", tmp_path / "run") == 0
    assert drawn == [1, 2, 3, 4, 5]


def test_a_notebook_shows_one_figure_that_changes(tmp_path, monkeypatch):
    def display(picture: object, display_id: bool) -> SimpleNamespace:
        assert display_id
        shown.append(("new", picture))
        return SimpleNamespace(update=lambda picture: shown.append(("same", picture)))

    shown, path, shell = [], tmp_path / "curves.png", SimpleNamespace()
    ipython, module = ModuleType("IPython"), ModuleType("IPython.display")
    vars(ipython).update(get_ipython=lambda: shell)
    vars(module).update(display=display, Image=lambda data, format: (data, format))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    figure = NotebookFigure()
    path.write_bytes(b"first")
    figure.show(path)
    assert shown == [], "IPython in a terminal has no kernel"
    shell.kernel = object()
    figure.show(path)
    path.write_bytes(b"second")
    figure.show(path)
    assert shown == [("new", (b"first", "png")), ("same", (b"second", "png"))]
    monkeypatch.delitem(sys.modules, "IPython")
    figure.show(path)
    assert len(shown) == 2


def expected(run: Path, name: str) -> list[tuple[int, float]]:
    """What a logger must hold of a metric: its values in ``metrics.jsonl``, by step."""
    return [(line["step"], line[name]) for line in metrics(run) if line.get(name) is not None]


def test_csv_holds_the_metrics_also_of_a_run_that_goes_on(tmp_path):
    run = tmp_path / "run"
    assert train(*SMALL, "--method", "iterated", "--logger", "csv", "--out", run) == 0
    assert train("--resume", run, "--epochs", 3) == 0
    for version, epochs in enumerate((2, 3)):
        with (run / "csv" / f"version_{version}" / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        for name in ("train_loss", "test_accuracy", "residual", "lr"):
            found = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
            assert found == [value for value in expected(run, name) if value[0] <= 2 * epochs], name
        layers = [line["residuals"] for line in metrics(run) if line["kind"] == "step" and line["step"] <= 2 * epochs]
        assert [float(row["residuals/all"]) for row in rows if row["residuals/all"]] == [of["all"] for of in layers]
    assert "batch_size: 256" in (run / "csv/version_0/hparams.yaml").read_text()


def test_tensorboard_holds_the_metrics_also_from_before_it_was_asked_for(tmp_path):
    run = tmp_path / "run"
    assert train(*SMALL, "--out", run) == 0
    assert not (run / "tensorboard").exists()
    assert train("--resume", run, "--epochs", 3, "--logger", "tensorboard") == 0
    events = EventAccumulator(str(run / "tensorboard/version_0"))
    events.Reload()
    for name in ("train_loss", "test_accuracy", "loss"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(step, pytest.approx(value)) for step, value in expected(run, name)]
    assert "logger: tensorboard" in (run / "config.yaml").read_text()


class Service:
    """Stands in for Weights & Biases, which is not installed here."""

    refuses = False

    def __init__(self, **options: object) -> None:
        self.options, self.rows, self.ends = options, [], []
        self.experiment = SimpleNamespace(finish=lambda exit_code: self.ends.append(exit_code))
        made.append(self)

    def log_hyperparams(self, values: dict) -> None:
        if self.refuses:
            raise sys.modules["wandb"].Error("No API key configured.")
        assert values["network"]["widths"] == [6]

    def log_metrics(self, values: dict, step: int) -> None:
        assert all(isinstance(value, int | float) for value in values.values())
        self.rows.append((step, values))

    def save(self) -> None:
        pass

    def finalize(self, status: str) -> None:
        self.ends.append(status)


made: list[Service] = []


@pytest.fixture
def wandb(monkeypatch) -> type[Service]:
    module = ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    vars(module)["Error"] = type("Error", (Exception,), {})
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(lightning_loggers, "WandbLogger", Service)
    made.clear()
    return Service


def test_weights_and_biases_hears_of_the_metrics_and_the_end(wandb, tmp_path):
    run = tmp_path / "run"
    assert train(*SMALL, "--logger", "wandb", "--out", run) == 0
    (service,) = made
    assert service.options == {"project": "targetprop", "name": "run", "save_dir": run}
    found = [(step, values["train_loss"]) for step, values in service.rows if "train_loss" in values]
    assert found == expected(run, "train_loss") and service.ends == ["success", 0]
    assert train(*SMALL, "--optimizer.lr", 1e30, "--logger", "wandb", "--out", tmp_path / "failed") == 1
    assert made[-1].ends == ["failed", 1]


def test_weights_and_biases_without_an_account_is_a_sentence(wandb, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Service, "refuses", True)
    assert train(*SMALL, "--logger", "wandb", "--out", tmp_path / "run") == 1
    problem = "targetprop: --logger wandb cannot begin (No API key configured); run wandb login or set"
    assert capsys.readouterr().err.startswith(problem)


@pytest.mark.parametrize(
    ("name", "package"), [("csv", "lightning"), ("tensorboard", "tensorboard"), ("wandb", "wandb")]
)
def test_a_logger_that_is_not_installed_is_a_sentence_with_its_extra(name, package, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert train(*SMALL, "--logger", name, "--out", tmp_path / "run") == 1
    problem = f"targetprop: --logger {name} needs {package}, which is not installed; run pip install"
    assert capsys.readouterr().err == f"{problem} 'targetprop[{name}]', or leave the option out\n"
    assert not (tmp_path / "run").exists()
