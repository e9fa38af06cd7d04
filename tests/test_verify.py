"""``targetprop verify`` around the claims: verdicts, spread over seeds, files, page and exit status."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from targetprop.claims import CLAIMS, Claim, Number, Table, merge, verify
from targetprop.claims.figures import FIGURES
from targetprop.claims.records import read_records
from targetprop.claims.table import format_details, format_markdown, format_table
from targetprop.experiments.main import main


def made_up(seed: int = 0, value: float = 0.5, at_most: float | None = 1.0, name: str = "convergence") -> Claim:
    return Claim(
        name=name,
        statement="A < B & C | D",
        prediction="x ≤ 1",
        measured=(Number("x", (value,), at_most=at_most), Number("y", (seed + 0.5,))),
        stops="Nowhere.",
        limits=(Number("z", (float(seed),)),),
        tables=(Table("Rows", ("k", "v"), (("a", 1.5), ("b", float("nan")))),),
        data={"points": [1.0, 2.0]},
        seeds=(seed,),
        seconds=1.0,
    )


def picture(claim: Claim) -> Figure:
    figure = Figure()
    figure.subplots().plot(claim.data["points"])
    return figure


@pytest.fixture
def measured(monkeypatch):
    """Replace measuring and drawing, so that the command is what is tested."""
    values: dict = {"bridge": 2.0}

    def measure(name, seeds):
        claim = merge([made_up(seed, values.get(name, 0.5), name=name) for seed in seeds])
        return replace(claim, should_hold=name != values.get("finding"))

    monkeypatch.setattr(verify, "measure", measure)
    monkeypatch.setattr(verify, "FIGURES", dict.fromkeys(CLAIMS, picture))
    return values


@pytest.mark.parametrize(
    ("number", "holds"),
    [
        (Number("x", (1.0, 2.0), at_least=1.0, at_most=2.0), True),
        (Number("x", (1.0, 2.1), at_most=2.0), False),
        (Number("x", (0.9, 1.1), at_least=1.0), False),
        (Number("x", (float("nan"),), at_most=2.0), False),
        (Number("x", (float("inf"),), at_least=1.0), False),
        (Number("x", (float("nan"),)), True),
    ],
)
def test_a_number_holds_within_its_bounds_for_every_seed(number: Number, holds: bool) -> None:
    assert number.holds is holds


def test_the_verdict_is_that_of_the_bounded_numbers() -> None:
    assert made_up(value=1.0).verdict == "holds"
    assert made_up(value=1.01).verdict == "fails"
    assert made_up(at_most=None).verdict == "reported"


def test_one_seed_out_of_bounds_fails_the_claim_and_the_spread_shows_it() -> None:
    both = merge([made_up(0, 0.5), made_up(1, 1.5)])
    assert both.verdict == "fails"
    assert both.seeds == (0, 1) and both.seconds == 2.0
    assert str(both.measured[0]) == "x: 0.5 to 1.5 (≤ 1)" and str(both.limits[0]) == "z: 0 to 1"
    with pytest.raises(ValueError, match="same numbers"):
        merge([made_up(), made_up(name="other")])


def test_the_table_fits_its_columns_and_says_what_failed() -> None:
    for columns in (96, 140):
        text = format_table([made_up(value=1.5), made_up()], columns)
        assert max(len(line) for line in text.split("\n")) <= columns
        assert "✗ x: 1.5 (≤ 1)" in text and "convergence: FAILS" in text and "convergence: HOLDS" in text


def test_markdown_shows_the_key_number_and_the_details_all_of_them() -> None:
    assert r"| A < B & C \| D | x: 0.5 (≤ 1) | **holds** |" in format_markdown([made_up()])
    chosen = Number("smallest cosine of weight changes after 64 steps", (0.5,))
    claim = replace(made_up(name="gauss-newton"), measured=(*made_up().measured, chosen))
    assert "| cosine of weight changes: 0.5 |" in format_markdown([claim])
    details = format_details(made_up())
    assert "| x | 0.5 | ≤ 1 |\n| y | 0.5 |  |" in details
    assert "Seeds 0: **holds**" in details and "(seed 0): Nowhere." in details


class Reader(HTMLParser):
    """Collects what a page refers to, and checks that its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in ("meta", "br", "!doctype"):
            self.open.append(tag)
        self.ids += [value for key, value in attrs if key == "id" and tag == "section"]
        self.outside += [v for key, v in attrs if key in ("src", "href") and tag != "a" and not v.startswith("#")]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_one_claim_writes_table_records_figure_and_a_page_that_needs_no_other_file(measured, tmp_path, capsys) -> None:
    assert main(["verify", "--claim", "gauss-newton", "--seeds", "2", "--out", str(tmp_path)]) == 0
    (record,) = json.loads((tmp_path / "claims.json").read_text())
    assert record["name"] == "gauss-newton" and record["verdict"] == "holds" and record["seeds"] == [0, 1]
    assert record["measured"][0] == {"what": "x", "values": [0.5, 0.5], "at_least": None, "at_most": 1.0}
    assert record["tables"][0]["rows"][1] == ["b", None]
    assert (tmp_path / "gauss-newton.png").read_bytes().startswith(b"\x89PNG")
    page, reader = (tmp_path / "claims.html").read_text(), Reader()
    reader.feed(page)
    assert not reader.open and not reader.outside and reader.ids == ["gauss-newton"]
    assert "A &lt; B &amp; C" in page and page.count("<svg") == 1 and ">Rows<" in page and ">1.5<" in page
    assert re.search(r'href="#gauss-newton"', page)
    out, err = capsys.readouterr()
    assert "gauss-newton: HOLDS" in out and "2 seeds" in out and "gauss-newton: holds" in err


def test_all_claims_run_and_one_that_should_hold_and_fails_sets_the_exit_status(
    measured, tmp_path, capsys, monkeypatch
) -> None:
    assert main(["verify", "--out", str(tmp_path)]) == 1
    assert [record["name"] for record in json.loads((tmp_path / "claims.json").read_text())] == list(CLAIMS)
    assert "These fail where they should hold: bridge\n" in capsys.readouterr().out
    monkeypatch.setitem(measured, "finding", "bridge")
    assert (
        main(["verify", "--claim", "bridge", "--out", str(tmp_path)]) == 0
    )  # it fails, and nothing promised that it should hold
    measured["bridge"] = 0.5
    assert main(["verify", "--out", str(tmp_path)]) == 0  # what an earlier verify wrote is replaced


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--claim", "convergnce"], "did you mean 'convergence'"),
        (["--seeds", "0"], "--seeds must be a whole number ≥ 1; got 0"),
        (["--seed", "1"], "no option --seed"),
        (["convergence"], "targetprop verify --help"),
        (["--print_config"], "no option --print_config"),
    ],
)
def test_wrong_usage_is_one_sentence(argv: list[str], sentence: str, capsys) -> None:
    assert main(["verify", *argv]) == 2
    message = capsys.readouterr().err
    assert sentence in message and message.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_said(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main(["verify", "--out", str(tmp_path / "file")]) == 2
    assert "give another folder" in capsys.readouterr().err


def test_help_names_every_claim(capsys) -> None:
    assert main(["verify", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in CLAIMS)


def test_every_claim_has_its_figure() -> None:
    assert list(FIGURES) == list(CLAIMS)


def test_the_tables_of_the_pages_are_those_of_the_committed_record() -> None:
    root = Path(__file__).parents[1]
    claims = read_records(root / "benchmarks" / "results" / "claims.json")
    assert [claim.name for claim in claims] == list(CLAIMS)
    table = format_markdown(claims)
    details = (root / "docs" / "claims.md").read_text()
    assert table in details
    rows = [row.replace("\\|", "").strip("| ").split(" | ") for row in table.split("\n")]
    assert {len(row) for i, row in enumerate(rows) if i != 1} == {3}
    assert [cell for row in rows for cell in row if len(cell.split()) > 15] == []
    assert [claim.name for claim in claims if format_details(claim) not in details] == []
