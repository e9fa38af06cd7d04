"""The order of the parts: data flows one way, so imports point one way."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import targetprop

ROOT = Path(targetprop.__file__).parent
# From the bottom up: a module may import what stands above it in this list, and its own folder.
ORDER = [
    "settings", "precision", "batch", "belief", "inversion", "peers", "finite", "layers", "output_target", "regression",
    "decoders", "joint", "targets", "drawn_targets", "step_report", "influence", "updates", "recipe", "methods",
    "checks", "forward", "generators", "step", "engine_state", "backprop", "parallel", "engine", "check", "lightning",
    "diagnostics", "testing", "runs", "report", "experiments", "sweep", "bench", "claims",
    "__main__",
]  # fmt: skip
# These use the library through its public names, as anybody would.
USERS = ("runs", "report", "experiments", "sweep", "bench", "claims", "__main__")
# What a part may never import, whatever the order says.
FORBIDDEN = {
    "inversion": ("torch.nn", "targetprop.layers", "targetprop.decoders"),
    "engine": ("targetprop.diagnostics",),
    "runs": ("targetprop.engine", "targetprop.methods", "targetprop.decoders", "targetprop.diagnostics"),
    "report": ("targetprop.engine", "targetprop.methods", "targetprop.decoders", "targetprop.diagnostics"),
}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """List the modules that a file imports, with the names taken from them, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} uses a relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_part_has_its_place() -> None:
    assert {part(path) for path in FILES} == set(ORDER)


def test_no_files_import_each_other_in_a_circle() -> None:
    names = {".".join(("targetprop", *path.relative_to(ROOT).with_suffix("").parts)): path for path in FILES}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    TopologicalSorter({name: (imports(path) & names.keys()) - {name} for name, path in names.items()}).prepare()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    mine = part(path)
    for name in imports(path):
        if name == "targetprop" or name.removeprefix("targetprop.") in (*targetprop.__all__, "__version__"):
            assert mine in USERS, f"{path.name} imports {name}: take it from the part that defines it"
            continue
        if not name.startswith("targetprop."):
            continue
        theirs = name.split(".")[1]
        assert theirs in ORDER, f"{path.name} imports {name}: import it from the part that defines it"
        assert ORDER.index(theirs) <= ORDER.index(mine), f"{path.name} imports {name}, which stands above it"


@pytest.mark.parametrize(
    "path", [p for p in FILES if part(p) in FORBIDDEN], ids=lambda path: str(path.relative_to(ROOT))
)
def test_forbidden_imports(path: Path) -> None:
    for name in imports(path):
        for forbidden in FORBIDDEN[part(path)]:
            assert name != forbidden and not name.startswith(f"{forbidden}."), f"{path.name} imports {name}"


def test_only_the_engine_imports_what_concerns_several_processes() -> None:
    users = {part(path) for path in FILES if any(name.startswith("targetprop.parallel") for name in imports(path))}
    assert users == {"engine", "parallel"}


def test_public_names_are_pinned() -> None:
    assert targetprop.__all__ == [
        "METHODS", "Check", "DeltaRule", "Denoising", "Difference", "DifferenceReconstruction", "Direct",
        "DirectFeedback", "Exact", "Fixed", "GaussNewtonStep", "GlobalReconstruction", "Gradient", "GradientStep",
        "Influence", "InputSpace", "Kronecker", "Krylov", "LabelTarget", "LeastSquares", "Method", "NoDecoder",
        "OutputSpace", "Placement", "Regularised", "Residual", "Ridge", "Solution", "Status", "StepReport",
        "TargetPropagation", "WeightInverse", "WeightMirror", "check", "invert", "method", "normalise",
        "register_decoder",
    ]  # fmt: skip
    assert all(hasattr(targetprop, name) for name in targetprop.__all__)
