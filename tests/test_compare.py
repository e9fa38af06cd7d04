"""``targetprop compare``: groups by seed, what differs, figures of finished and other runs, the page and its errors."""

import json
import re
from html.parser import HTMLParser
from math import isclose
from pathlib import Path
from socket import gethostname

import numpy as np

from targetprop.experiments.compare import find_runs, read_run
from targetprop.experiments.main import main
from targetprop.report.comparison import QUANTITIES, Comparison, compare_runs, find_differences
from targetprop.report.comparison_figure import draw_comparison
from targetprop.report.comparison_table import tabulate
from targetprop.report.style import COLOURS
from targetprop.runs.encode import encode_line

BASE = {"method": "l-drl", "optimizer": {"name": "adam", "lr": 0.001}, "epochs": 3, "device": "auto"}
LOSS, ACCURACY = QUANTITIES[0], QUANTITIES[3]


def make(path: Path, losses: list[float], status: str = "finished", **config: object) -> Path:
    """Write a run: an epoch has 10 steps and takes as many seconds as its loss is."""
    path.mkdir(parents=True)
    values = BASE | {"seed": 0} | config
    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items()]
    (path / "config.yaml").write_text("\n".join(lines) + "\n")
    seconds, lines = 0.0, []
    for epoch, loss in enumerate(losses, start=1):
        seconds += loss
        at = {"kind": "epoch", "epoch": epoch, "step": 10 * epoch, "seconds": seconds}
        lines.append(encode_line({**at, "train_loss": loss, "test_loss": 9.0, "test_accuracy": 1 - loss / 10}))
    (path / "metrics.jsonl").write_bytes(b"".join(lines))
    summary = {"status": status.replace("diverged", "failed"), "reason": None, "diverged": status == "diverged"}
    (path / "summary.json").write_text(json.dumps({**summary, "device": "cpu", "host": gethostname()}))
    return path


def compared(*runs: Path) -> Comparison:
    return compare_runs([read_run(run) for run in runs])


def test_runs_that_differ_in_their_seed_alone_are_one_row_best_first(tmp_path):
    a = [make(tmp_path / f"a{s}", losses, seed=s) for s, losses in enumerate(([3.0, 1.0, 2.0], [5.0, 3.0, 4.0]))]
    b = make(tmp_path / "b", [4.0, 2.0, 1.0], optimizer={"name": "adam", "lr": 0.01})
    found = compared(*a, b)
    assert found.differing == ["optimizer.lr"] and [len(group.runs) for group in found.groups] == [1, 2]
    best, pair = found.groups
    assert (best.name, pair.name) == ("lr 0.01", "lr 0.001")
    assert (pair.finals(LOSS), pair.bests(LOSS), pair.seconds()) == ([2.0, 4.0], [1.0, 3.0], [6.0, 12.0])
    assert pair.bests(ACCURACY) == [0.9, 0.7]
    columns, rows = tabulate(found)
    named = dict(zip([column.title for column in columns], rows[1], strict=True))
    assert [column.title for column in columns][:4] == ["optimizer.lr", "seeds", "training loss", "best"]
    assert (named["seeds"], named["training loss"], named["status"]) == ("0, 1", "3 (2–4)", "2 finished")
    assert named["test accuracy (%)"] == "70.00 (60.00–80.00)" and named["time (s)"] == "9.0 (6.0–12.0)"


def test_groups_are_ordered_by_held_out_data_where_all_have_some(tmp_path):
    a, b = make(tmp_path / "a", [1.0]), make(tmp_path / "b", [2.0], epochs=4)

    def add(run: Path, loss: float) -> None:
        record = json.loads((run / "metrics.jsonl").read_text()) | {"validation_loss": loss}
        (run / "metrics.jsonl").write_bytes(encode_line(record))

    add(b, 0.5)
    assert [group.runs[0].path.name for group in compared(a, b).groups] == ["a", "b"]
    add(a, 0.7)
    assert [group.runs[0].path.name for group in compared(a, b).groups] == ["b", "a"]


def test_what_follows_from_a_choice_is_no_difference():
    mirror = {"method": "l-drl", "decoder.objective": "mirror", "decoder.lr": "1"}
    mirror |= {"optimizer.name": "adam", "optimizer.lr": "1"}
    dtp = mirror | {"method": "dtp", "decoder.objective": "denoising", "optimizer.lr": "2"}
    assert find_differences([mirror, dtp]) == ["method", "optimizer.lr"]
    assert find_differences([mirror, dtp, mirror | {"decoder.lr": "3"}]) == ["method", "decoder.lr", "optimizer.lr"]
    sgd = mirror | {"optimizer.name": "sgd", "optimizer.momentum": "0.9"}
    assert find_differences([mirror, sgd]) == ["optimizer.name"], "the other has no momentum"
    assert find_differences([sgd, sgd | {"optimizer.momentum": "0"}]) == ["optimizer.momentum"]
    assert find_differences([mirror, mirror | {"seed": "1", "log_every": "7"}]) == []


def test_runs_that_came_to_no_end_are_shown_as_such_and_not_averaged(tmp_path):
    whole = make(tmp_path / "0", [3.0, 2.0, 1.0])
    words = {"interrupted": [2.0, 0.5], "diverged": [2.0, 0.5, 0.6], "pruned": [2.0, 0.5]}
    others = [make(tmp_path / word, losses, word, seed=s) for s, (word, losses) in enumerate(words.items(), 1)]
    (group,) = compared(whole, *others).groups
    assert group.finals(LOSS) == [1.0] and group.counted[0].path == whole
    assert group.statuses() == "1 finished, 1 interrupted at epoch 2/3, 1 diverged at epoch 3/3, 1 pruned at epoch 2/3"
    stopped = make(tmp_path / "alone", [0.1], "interrupted", epochs=5)
    killed = make(tmp_path / "killed", [], "running", epochs=7)
    found = compared(stopped, killed, whole)
    assert [group.runs[0].path.name for group in found.groups] == ["0", "alone", "killed"], "complete runs come first"
    assert [group.statuses() for group in found.groups] == [
        "finished",
        "interrupted at epoch 1/5",
        "killed at epoch 0/7",
    ]
    assert found.groups[1].finals(LOSS) == [0.1] and found.groups[2].finals(LOSS) == []
    assert [note.split(" ")[0] for note in found.notes()] == [str(stopped), str(killed)]
    (killed / "summary.json").unlink()
    assert compared(killed).groups[0].statuses() == "unknown at epoch 0/7"


def test_times_of_different_machines_are_noted(tmp_path):
    runs = [make(tmp_path / name, [1.0]) for name in "ab"]
    assert compared(*runs).notes() == []
    summary = json.loads((runs[1] / "summary.json").read_text())
    (runs[1] / "summary.json").write_text(json.dumps(summary | {"device": "cuda:0"}))
    found = compared(*runs)
    note = f"the times are of different machines: cpu of {gethostname()}, cuda:0 of {gethostname()}"
    assert found.differing == ["device"] and found.notes() == [note]


def test_curves_are_means_in_bands_by_step_and_by_second(tmp_path):
    pair = [make(tmp_path / f"{s}", losses, seed=s) for s, losses in enumerate(([4.0, 2.0], [6.0, 3.0]))]
    stopped = make(tmp_path / "stopped", [5.0], "interrupted", seed=2)
    figure = draw_comparison(compared(*pair, stopped))
    by_step, by_second, _, accuracy = figure.axes
    mean = next(line for line in by_step.lines if len(line.get_xdata()) == 2)
    assert np.allclose(mean.get_xydata(), [[10, 5], [20, 2.5]])
    mean = next(line for line in by_second.lines if len(line.get_xdata()) == 2)
    assert np.allclose(mean.get_xydata(), [[5, 5], [7.5, 2.5]])
    (band,) = by_step.collections
    low, high = band.get_paths()[0].get_extents().intervaly
    assert isclose(low, 2) and isclose(high, 6)
    (cross,) = [line for line in by_step.lines if line.get_marker() == "x"]
    assert cross.get_xydata().tolist() == [[10.0, 5.0]]
    assert accuracy.get_xlabel() == "seconds in training steps" and by_step.get_yscale() == "log"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["l-drl", "lowest to highest seed", "did not come to its end"]


def test_a_run_that_diverges_does_not_set_the_scale(tmp_path):
    runs = [make(tmp_path / "a", [2.0, 1.0]), make(tmp_path / "b", [1e6, 1e9], "diverged", epochs=4)]
    assert draw_comparison(compared(*runs)).axes[0].get_ylim()[1] == 3.0


def test_beyond_the_colours_groups_are_grey(tmp_path):
    many = [make(tmp_path / f"{k}", [1.0 + k, 0.5 + k], epochs=10 + k) for k in range(len(COLOURS) + 2)]
    figure = draw_comparison(compared(*many), ["step"])
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "2 others"
    assert len({line.get_color() for line in figure.axes[0].lines}) == len(COLOURS) + 1


class Reader(HTMLParser):
    """Collects what a page refers to and what its images are called, and checks that its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.images: list[str | None] = []

    def handle_starttag(self, tag, attrs) -> None:
        values = dict(attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag in ("svg", "img"):
            self.images.append(values.get("aria-label") or values.get("alt"))
        self.outside += [values[key] for key in ("src", "href") if not values.get(key, "#").startswith("#")]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_the_command_writes_a_table_a_figure_and_one_page(tmp_path, capsys):
    for seed in range(2):
        make(tmp_path / "runs" / f"a{seed}", [3.0, 2.0], seed=seed)
    make(tmp_path / "runs" / "b", [3.0], "interrupted", optimizer={"name": "<adam>", "lr": 0.001})
    (tmp_path / "runs" / "studies.db").write_text("no run")
    (tmp_path / "runs" / "notes").mkdir()
    assert main(["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert (
        "2 finished" in out
        and "interrupted at epoch 1/3" in out
        and f"page: {tmp_path / 'out' / 'compare.html'}" in out
    )
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    page, reader = (tmp_path / "out" / "compare.html").read_text(), Reader()
    reader.feed(page)
    assert not reader.open and not reader.outside and "&lt;adam&gt;" in page
    assert len(reader.images) == 2 and all("training loss" in (text or "") for text in reader.images)
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page
    assert re.search(r"<td>optimizer.lr</td><td>0.001</td>", page), "what all runs have alike"


def test_a_folder_that_holds_runs_counts_as_these_and_each_run_counts_once(tmp_path):
    run = make(tmp_path / "runs" / "a", [1.0])
    make(tmp_path / "runs" / "b", [1.0])
    (tmp_path / "runs" / "log.txt").write_text("")
    names = [path.name for path in find_runs([run, tmp_path / "runs", tmp_path / "runs" / "log.txt"])]
    assert names == ["a", "b"]


def test_what_is_no_run_is_one_sentence(tmp_path, capsys):
    run = make(tmp_path / "a", [1.0])
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for words, message in (
        ([], "targetprop compare needs the folders of runs, such as runs/*"),
        ([str(run), str(tmp_path / "empty")], "empty is not a run folder, it has no config.yaml, and holds none"),
        ([str(tmp_path / "nowhere")], "nowhere does not exist; give the folders of runs"),
        ([str(tmp_path / "file")], "there are files only and no runs"),
        ([str(run), "--outt", "x"], "did you mean --out?"),
    ):
        assert main(["compare", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    (run / "metrics.jsonl").write_text("{\n")
    assert main(["compare", str(run), "--out", str(tmp_path / "out")]) == 1
    assert "line 1 of" in capsys.readouterr().err and not (tmp_path / "out" / "compare.html").exists()
