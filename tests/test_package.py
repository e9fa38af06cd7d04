"""What is installed: one version, extras that hold what their files import, a library that needs none of them."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import library_alone
import targetprop
from targetprop.experiments import main as main_module
from test_layering import FILES, imports, part

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Modules whose package has another name.
PACKAGES = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "pytorch_optimizer": "pytorch-optimizer"}
# Which extras a part may need beside the library's own dependencies; a part that is not named here needs none.
NEEDS = {
    "lightning": {"lightning"},
    "runs": {"experiments"},
    "report": {"experiments"},
    "experiments": {"experiments"},
    "sweep": {"experiments", "sweep"},
    "bench": {"experiments", "bench"},
    "claims": {"experiments"},
    "__main__": {"experiments"},
}


def packages(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=~!]", requirement)[0] for requirement in requirements}


def test_the_library_needs_nothing_of_the_extras():
    command = [sys.executable, "-W", "error", library_alone.__file__]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "method dtp" in done.stdout, done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_every_import_is_in_its_extra(path):
    allowed = packages(PROJECT["dependencies"]).union(*(packages(EXTRAS[name]) for name in NEEDS.get(part(path), ())))
    found = {name.partition(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"targetprop"}
    assert {PACKAGES.get(name, name) for name in found} <= allowed | ({"pytest"} if part(path) == "testing" else set())


def test_what_the_extras_bring_is_hidden_from_the_library_alone():
    names = {name: module for module, name in PACKAGES.items()}
    optional = set().union(
        *(packages(held) for extra, held in EXTRAS.items() if extra in {*NEEDS, "tensorboard", "wandb"})
    )
    assert {names.get(name, name) for name in optional} <= library_alone.OPTIONAL


def test_there_is_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    assert str(citation["version"]) == targetprop.__version__
    assert f"## [{targetprop.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_a_missing_package_is_told_with_an_extra_that_has_it():
    for module, extras in main_module._EXTRAS.items():
        assert PACKAGES.get(module, module) in set().union(*(packages(EXTRAS[extra]) for extra in extras.split(",")))
