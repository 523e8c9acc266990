from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from synthetic import write_pictures, write_scores, write_sweep

import analysis.notebooks

NOTEBOOKS = sorted(Path(analysis.notebooks.__file__).parent.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_without_output(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            assert "def " not in cell.source


def executed(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **environ: str) -> list[dict]:
    """The outputs of a notebook, run in ``folder``."""
    for key, value in {"PYTHONPATH": str(Path(analysis.__file__).parents[1]), **environ}.items():
        monkeypatch.setenv(key, value)
    notebook = nbformat.read(Path(analysis.notebooks.__file__).parent / name, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=60, kernel_name="python3", resources=resources).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def pictures(outputs: list[dict]) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)


def printed(outputs: list[dict]) -> str:
    return "".join(output.get("text", "") for output in outputs)


def test_figure8_runs_from_a_directory(tmp_path, monkeypatch):
    root = write_pictures(write_scores(write_sweep(tmp_path / "runs", noise=0.002, seeds=2)))
    outputs = executed("figure8.ipynb", tmp_path, monkeypatch, SD3_JAX_RUNS=str(root))
    assert pictures(outputs) == 2  # the figure, the contact sheet
    for text in ("L = E + A / N^alpha + B / D^beta", "depth 7 held out", "The score rises as the loss falls"):
        assert text in printed(outputs)


def test_own_csv_runs_from_a_table(tmp_path, monkeypatch):
    """Valleys of a known law, under headers of one's own, with a row that is not whole."""
    rng, lines = np.random.default_rng(0), ["N,tokens,loss,run", "1e8,,2.0,broken"]
    for budget in np.geomspace(1e18, 1e20, 5):
        best = 0.1 * budget**0.5
        for size in best * np.geomspace(0.25, 4, 7):
            data = budget / (6 * size)
            loss = (1.69 + 406.4 * size**-0.34 + 410.7 * data**-0.34) * (1 + 0.001 * rng.standard_normal())
            lines.append(f"{size},{data},{loss},r{len(lines)}")
    (tmp_path / "own.csv").write_text("\n".join(lines))
    environ = {"SD3_JAX_TABLE": "own.csv", "SD3_JAX_COLUMNS": "params=N,data=tokens", "SD3_JAX_RESAMPLES": "40"}
    outputs = executed("own_csv.ipynb", tmp_path, monkeypatch, **environ)
    assert pictures(outputs) == 5
    for text in (
        "1 row with an empty",
        "C = 6 N D",
        "the 3 runs of most FLOPs held out",
        "10 times the most of any run",
    ):
        assert text in printed(outputs)
