"""Imports point down only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "errors": 0, "config": 0, "checks": 0, "overlays": 0, "formulations": 0, "flops": 0, "hardware": 0, "layout": 0,
    "records": 0, "bucket": 0, "trackers": 0, "lease": 0, "platform": 0, "experiments": 0, "units": 0,
    "protocols": 0,
    "flow": 1, "models": 1, "data": 1, "training": 2, "evaluation": 2, "scorers": 2, "train": 3, "initial": 3,
    "contact": 3, "evaluate": 3, "systems": 3, "scoring": 3, "convert": 3, "voting": 3, "compare": 4, "sweep": 4,
    "terminal": 4, "cli": 5,
}  # fmt: skip


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, at the top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.split(".")[0] in ("sd3_jax", "analysis")}


@pytest.mark.parametrize("path", sorted((ROOT / "sd3_jax").rglob("*.py")), ids=str)
def test_training_imports_downwards_and_only_the_command_line_knows_the_analysis(path: Path) -> None:
    room = path.relative_to(ROOT / "sd3_jax").parts[0].removesuffix(".py")
    if room == "__init__":
        return
    for name in imported(path):
        package, _, rest = name.partition(".")
        if package == "analysis":
            assert room == "cli", f"{path} imports {name}"
        elif rest.split(".")[0] in FLOORS:
            assert FLOORS[rest.split(".")[0]] <= FLOORS[room], f"{path} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "analysis").glob("*.py")), ids=str)
def test_analysis_knows_only_the_ground_floor(path: Path) -> None:
    for name in imported(path):
        package, _, rest = name.partition(".")
        if package == "sd3_jax" and rest:
            assert FLOORS[rest.split(".")[0]] == 0, f"{path} imports {name}"
