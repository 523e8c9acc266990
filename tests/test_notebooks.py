from pathlib import Path

import nbformat
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


def test_figure8_runs_from_a_directory(tmp_path, monkeypatch):
    root = write_pictures(write_scores(write_sweep(tmp_path / "runs", noise=0.002, seeds=2)))
    monkeypatch.setenv("SD3_JAX_RUNS", str(root))
    monkeypatch.setenv("PYTHONPATH", str(Path(analysis.__file__).parents[1]))
    notebook = nbformat.read(Path(analysis.notebooks.__file__).parent / "figure8.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2  # the figure, the contact sheet
    printed = "".join(output.get("text", "") for output in outputs)
    assert "L = E + A / N^alpha + B / D^beta" in printed
    assert "depth 7 held out" in printed
    assert "The score rises as the loss falls" in printed
